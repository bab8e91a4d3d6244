"""The README's screenshot: small, and of the report that is there."""

from pathlib import Path

import pytest
from PIL import Image

from tests.support.chromium import HOW_TO_GET_IT, find_chromium
from tests.support.screenshot import HEIGHT, MOST_BYTES, WIDTH, main

needs_chromium = pytest.mark.skipif(find_chromium() is None, reason=HOW_TO_GET_IT)


@needs_chromium
def test_screenshot_is_a_small_picture_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<body style='background:#0b6a8f'><h1>Report</h1>", encoding="utf-8")
    main([str(tmp_path / "page.html"), str(tmp_path / "shot.png")])
    assert (tmp_path / "shot.png").stat().st_size < MOST_BYTES
    with Image.open(tmp_path / "shot.png") as image:
        assert (image.mode, image.size) == ("P", (WIDTH, HEIGHT))
        assert image.convert("RGB").getpixel((WIDTH - 5, HEIGHT // 2)) == (0x0B, 0x6A, 0x8F)


def test_without_a_browser_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(SystemExit, match="apt install chromium"):
        main([])
