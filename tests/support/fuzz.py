"""`make fuzz`: atheris drives the decode path with mutated files of every format, for ten minutes by default.

Nothing but `ImageDecodeError` may come out, and no more than a gigabyte may be taken: `python -m tests.support.fuzz SECONDS`.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "features"]):
    import hoarfrost.features.decoding.dicom  # noqa: F401 - what is imported later is not instrumented
    from hoarfrost.features.decoding.formats import EncodedFrame
    from hoarfrost.features.decoding.images import Decoding, _formats
    from hoarfrost.features.decoding.looks import load_image
    from hoarfrost.features.errors import ImageDecodeError

    _formats()  # imports Pillow's plugins

from tests.decoding.test_dicom_files import SMALL
from tests.decoding.test_formats import CORPUS
from tests.support.dicoms import PYDICOM_FILES

MAX_PIXELS = 1 << 22  # so that a header alone does not take the gigabyte
MAX_BYTES = 1 << 16
MEMORY_MB = 1000
SECONDS_AN_INPUT = 10


def decode(data: bytes) -> None:
    """Decode a file as it is, and as the second frame of it."""
    for content in (data, EncodedFrame(data, b"", 2, 2)):
        try:
            load_image(content, Decoding(MAX_PIXELS))
        except ImageDecodeError:
            continue


def main(seconds: int) -> None:
    Path("artifacts").mkdir(exist_ok=True)  # where an input that breaks a promise is left
    with tempfile.TemporaryDirectory() as folder:
        seeds = [content for content, _, _ in CORPUS.values()] + list(SMALL.values())
        seeds += [path.read_bytes() for path in PYDICOM_FILES.glob("*.dcm") if path.stat().st_size < MAX_BYTES]
        for i, seed in enumerate(seeds):
            Path(folder, str(i)).write_bytes(seed)
        options = [
            f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", f"-rss_limit_mb={MEMORY_MB}",
            f"-timeout={SECONDS_AN_INPUT}", "-print_final_stats=1", "-artifact_prefix=artifacts/fuzz-", "-verbosity=0",
        ]  # fmt: skip
        atheris.Setup([sys.argv[0], *options, folder], decode)
        atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 600)
