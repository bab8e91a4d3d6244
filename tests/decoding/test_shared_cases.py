"""The files of public bug reports that are kept beside the checkout: shown as expected. Other tests make such files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoarfrost.features.decoding.images import decode_pixels
from tests.support.commands import ROOT

CASES = ROOT.parent / "shared" / "cases"
FILES = sorted(path for path in CASES.glob("*/*") if path.with_name("expected.png").exists())
MOST = {"jpeg_420_labelled_rgb": 6}  # of 255: two ways to enlarge the colours


@pytest.mark.skipif(not FILES, reason="../shared/cases is not here")
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_case_is_shown_as_expected(path: Path) -> None:
    if path.name in {"README", "expected.png"}:
        return
    wanted = np.asarray(Image.open(path.with_name("expected.png"))).astype(int)
    assert np.abs(decode_pixels(path.read_bytes()) - wanted).max() <= MOST.get(path.parent.name, 1)
