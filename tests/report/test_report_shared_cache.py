"""A cache from others may name any path or URL: a report reads images from below the dataset's own folder alone."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hoarfrost.features.columns.texts import Texts
from hoarfrost.inference.sources import RunSource, opened_source
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import Run
from tests.support.commands import Hoarfrost
from tests.support.pictured import image_dataset, pictured_run, trained, write_pictured_cache


@contextmanager
def steered(run: Run, root: str, path: str, *images_from: str) -> Iterator[RunSource]:
    """Open the cache of a run as if it had another root, and a path in front of its first image."""
    with opened_source(run, images_from) as source:
        first, *others = list(source.table.paths)
        table = replace(source.table, root=root, paths=Texts.of([path + first, *others]))
        yield replace(source, table=table, place={name: i for i, name in enumerate(table.paths)})


def read_of(source: RunSource) -> tuple[list[str], dict[str, str]]:
    reasons: dict[str, str] = {}
    return [path for path, _ in source.contents([next(iter(source.table.paths))], reasons)], reasons


@pytest.mark.parametrize("where", ["http://evil.example", "https://evil.example/x", "s3://bucket/x", "file:///etc"])
def test_urls_of_a_cache_are_not_requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    run = pictured_run(tmp_path)
    requested: list[object] = []
    for name in ("read_url", "stamp_of_url", "list_url"):
        monkeypatch.setattr(f"hoarfrost.features.files.{name}", requested.append)
    for root, path in ((where, ""), (str(tmp_path / "images"), f"{where}/")):
        with steered(run, root, path) as source:
            found, reasons = read_of(source)
        assert found == []
        assert "is not below the dataset's own folder, but in" in next(iter(reasons.values()))
    assert requested == []


@pytest.mark.parametrize("path", ["../images/", "x/../../images/", "{tmp}/images/"])
def test_paths_outside_of_the_root_are_not_read_unless_their_folder_is_named(tmp_path: Path, path: str) -> None:
    run = pictured_run(tmp_path)
    (tmp_path / "root" / "x").mkdir(parents=True)
    path = path.format(tmp=tmp_path)
    with steered(run, str(tmp_path / "root"), path) as source:
        found, reasons = read_of(source)
    assert found == []
    assert list(reasons.values()) == [
        f"it is not below the dataset's own folder, but in {tmp_path / 'images' / '0'} (report --images-from)"
    ]
    with steered(run, str(tmp_path / "root"), path, str(tmp_path / "images")) as source:
        assert len(read_of(source)[0]) == 1
    with steered(run, "/", f"{tmp_path}/images/".lstrip("/")) as source:  # a root that is everything
        assert read_of(source)[0] == []


def test_report_of_images_elsewhere_names_the_option_that_shows_them(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    dataset = image_dataset(tmp_path / "images")
    dataset = replace(dataset, paths=Texts.of(f"{tmp_path}/images/{path}" for path in dataset.paths))
    (tmp_path / "tables").mkdir()
    dataset = replace(dataset, images=replace(dataset.images, root=str(tmp_path / "tables"), files=dataset.paths))
    run = trained(write_pictured_cache(tmp_path / "c.h5", dataset), tmp_path / "run")
    page = write_report(run.directory, with_map=False).read_text(encoding="utf-8")
    assert "it is not below the dataset&#39;s own folder, but in" in page
    assert "--images-from" in page
    done = hoarfrost("report", "--run", run.directory, "--no-map", "--images-from", tmp_path / "images")
    assert done.status == 0, done.stderr
    assert "not below the dataset" not in (run.directory / "report.html").read_text(encoding="utf-8")
    shutil.rmtree(tmp_path / "images")
