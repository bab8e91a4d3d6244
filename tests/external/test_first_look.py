"""The first look at a cohort compares what both caches recorded of the files: sizes, depths, headers, grey levels."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from hoarfrost.external.cohort import evaluate_cohort
from hoarfrost.runs import CohortDifference
from tests.support.predicted import Trained

pytestmark = pytest.mark.usefixtures("free_backbone")


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
