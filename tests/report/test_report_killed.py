"""A report that was killed while it was written is no obstacle, and leaves nothing once the next command has run."""

import os
from pathlib import Path

import pytest

import hoarfrost.report.outputs
from hoarfrost.features.errors import RunError
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import check_run_directory, read_run
from tests.runs.test_runs import written


def test_leftovers_of_a_killed_report_and_train_are_removed_by_the_next_command(tmp_path: Path) -> None:
    for use in (check_run_directory, read_run):
        written(tmp_path / "run")
        files = sorted(os.listdir(tmp_path / "run"))
        (tmp_path / "run" / ".report.html.4711.tmp").write_text("<html")
        (tmp_path / ".run.4711.tmp" / "heads").mkdir(parents=True)
        use(tmp_path / "run")
        assert sorted(os.listdir(tmp_path / "run")) == files
        assert os.listdir(tmp_path) == ["run"]


def test_run_that_was_moved_aside_when_train_was_killed_is_read(tmp_path: Path) -> None:
    run = written(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / ".run.4711.old")
    assert read_run(tmp_path / "run").config == run.config
    assert os.listdir(tmp_path) == ["run"]


def test_report_is_not_written_into_a_run_that_was_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "run", odd="first")

    def slow(*_: object, **__: object) -> str:
        written(tmp_path / "run", odd="second")
        return "<html> of the first"

    monkeypatch.setattr(hoarfrost.report.outputs, "render", slow)
    with pytest.raises(
        RunError, match=r"run was replaced while its report was being written.*Run .hoarfrost report. again"
    ):
        write_report(tmp_path / "run")
    assert not any("report" in name for name in os.listdir(tmp_path / "run"))
