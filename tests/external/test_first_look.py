"""The first look at a cohort compares what both caches recorded of the files: sizes, depths, headers, grey levels."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoarfrost.external.cohort import evaluate_cohort
from hoarfrost.external.differences import _numbers
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import CohortDifference, External, read_run
from tests.support.predicted import Trained

pytestmark = pytest.mark.usefixtures("free_backbone")


def external_of(directory: Path) -> External:
    found = read_run(directory).external
    assert found is not None
    return found


def said_unknown(directory: Path) -> list[str]:
    page = write_report(directory).read_text("utf-8")
    return page.partition("Not known of the training images: ")[2].partition(".")[0].split(", ")


def looks_at(data: Path, output: Path, trained: Trained) -> dict[str, CohortDifference]:
    found = evaluate_cohort(data, output, run=trained.run).external
    assert found is not None
    return {one.what: one for one in found.differences}


def changed(cohort: Path, folder: Path, change: Callable[[Image.Image], Image.Image]) -> Path:
    """Write the cohort with every image changed."""
    folder.mkdir()
    shutil.copy(cohort / "labels.csv", folder)
    for path in cohort.glob("*.png"):
        with Image.open(path) as image:
            change(image).save(folder / path.name)
    return folder


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda image: image.resize((90, 70)), {"pixel width", "pixel height", "aspect ratio"}),
        (lambda image: image.point(lambda value: 155 + value // 3), {"grey mean"}),
        (lambda image: image.convert("L"), {"colour mode", "channels"}),
    ],
    ids=["size", "grey levels", "colours"],
)
def test_first_look_compares_what_both_caches_record_of_the_files(
    trained: Trained, cohort: Path, tmp_path: Path, change: Callable[[Image.Image], Image.Image], expected: set[str]
) -> None:
    data = changed(cohort, tmp_path / "changed", change)
    looks = looks_at(data, tmp_path / "e", trained)
    assert {*looks} == {*looks_at(cohort, tmp_path / "s", trained)}
    assert expected <= {name for name, one in looks.items() if one.differs}
    assert not looks["bits per channel"].differs
    assert looks["bits per channel"].cohort == "8 100%"
    assert "manufacturer" not in looks


def test_first_look_leaves_out_what_the_training_cache_does_not_record(
    trained: Trained, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the caches of earlier versions do not."""
    monkeypatch.setattr("hoarfrost.external.training_images.mostly_known", lambda _: None)
    looks = {*looks_at(cohort, tmp_path / "e", trained)}
    assert "format" in looks
    assert not looks & {"pixel width", "grey mean", "colour mode"}
    assert "pixel sizes and grey levels" in said_unknown(tmp_path / "e")


def test_what_both_caches_record_is_not_said_to_be_unknown(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    assert "grey mean" in looks_at(cohort, tmp_path / "e", trained)
    assert set(external_of(tmp_path / "e").unknown) == {"age", "site"}  # columns of the cohort alone
    assert not {"pixel sizes", "grey levels"} & set(said_unknown(tmp_path / "e"))


def test_rounding_is_neither_a_difference_nor_a_spread() -> None:
    same, other = np.full(120, 1.154), np.full(120, 1.154)
    other[::2] = np.nextafter(1.154, 2)
    found = _numbers("aspect ratio", same, other)
    assert not found.differs
    assert (found.training, found.cohort) == ("mean 1.154 (SD 0)", "mean 1.154 (SD 0)")
    assert _numbers("aspect ratio", same, other + 0.01).differs
