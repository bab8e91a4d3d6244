"""`make screenshot`: the README's picture of a report, taken by headless Chromium.

`python -m tests.support.screenshot REPORT PICTURE`; without arguments it says whether a browser is there.
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.support.chromium import HOW_TO_GET_IT, find_chromium, open_page

WIDTH, HEIGHT = 1280, 1400
MOST_BYTES = 300_000  # of a picture that stays in git
COLOURS = (256, 128, 64, 32, 16)


def main(arguments: list[str]) -> None:
    if find_chromium() is None:
        sys.exit(HOW_TO_GET_IT)
    if arguments:
        report, picture = map(Path, arguments)
        take(report, picture)
        print(f"{picture}: {picture.stat().st_size:,} bytes")


def take(report: Path, picture: Path) -> None:
    """Take the top of a report, in as many colours as the size allows."""
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / "taken.png"
        open_page(report, f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={taken}")
        with Image.open(taken) as image:
            full = image.convert("RGB")
    for n_colours in COLOURS:
        full.quantize(n_colours, dither=Image.Dither.NONE).save(picture, optimize=True)
        if picture.stat().st_size <= MOST_BYTES:
            return
    sys.exit(
        f"{picture}: {picture.stat().st_size:,} bytes are more than {MOST_BYTES:,}, even in {COLOURS[-1]} colours."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
