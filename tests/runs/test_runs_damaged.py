"""Damaged run folders are named as such."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hoarfrost.features.errors import RunError
from hoarfrost.runs import (
    read_run,
)
from hoarfrost.runs.digests import write_digests
from hoarfrost.runs.folder import FORMAT_VERSION
from tests.runs.test_runs import edit_json, same, written


def edit_lines(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    write_digests(path.parent)


def test_folder_that_is_missing_or_empty_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        with pytest.raises(
            RunError, match=rf"{name} is not a run folder .*hoarfrost train --cache FILE --run .*{name}"
        ):
            read_run(tmp_path / name)


@pytest.mark.parametrize("name", ["metrics.json", "predictions.csv", "history.csv"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    run = written(tmp_path / "run")
    (run.directory / name).unlink()
    with pytest.raises(
        RunError, match=rf"the run is incomplete, {name} is missing\. Remove the folder and train again"
    ):
        read_run(run.directory)


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
@pytest.mark.parametrize("text", ["", "{", '{"format": "hoarfrost-run"', "[]", "null", "7", "[" * 100_000])
def test_json_that_is_cut_off_or_something_else_is_an_error_that_names_the_file(
    tmp_path: Path, name: str, text: str
) -> None:
    run = written(tmp_path / "run")
    (run.directory / name).write_text(text)
    write_digests(run.directory)
    with pytest.raises(RunError, match=rf"run/{name}(: the run is damaged: | is not the configuration of a run)"):
        read_run(run.directory)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "config.json",
            lambda c: c.update(format_version=FORMAT_VERSION + 1),
            r"newer hoarfrost .run format \d.* Upgrade hoarfrost",
        ),
        ("config.json", lambda c: c.update(format="a cake"), "is not the configuration of a run"),
        ("config.json", lambda c: c.pop("dataset"), "config.json: the run is damaged: 'dataset' is missing"),
        ("config.json", lambda c: c.pop("seed"), "config.json: the run is damaged: .*'seed'"),
        ("config.json", lambda c: c.update(dataset=[]), "config.json: the run is damaged"),
        ("config.json", lambda c: c.update(embeddings="x"), "config.json: the run is damaged"),
        ("config.json", lambda c: c["dataset"].update(classes=["x", "y"]), "'benign' is not one of the classes x, y"),
        ("metrics.json", lambda c: c.update(selected="cnn"), "selected head 'cnn' is not one of the run's heads"),
        ("metrics.json", lambda c: c.pop("selected"), "metrics.json: the run is damaged: 'selected' is missing"),
        ("metrics.json", lambda c: c.update(heads=[]), "selected head 'linear' is not one of the run's heads"),
        ("metrics.json", lambda c: c.update(heads=["linear"]), "metrics.json: the run is damaged"),
        ("metrics.json", lambda c: c["heads"][0].pop("n_parameters"), "metrics.json: the run is damaged"),
        (
            "metrics.json",
            lambda c: c["heads"][0]["val"].pop("roc_auc"),
            "the score roc_auc of the head linear is missing",
        ),
        ("metrics.json", lambda c: c["heads"][0].update(val=None), "metrics.json: the run is damaged"),
        ("metrics.json", lambda c: c["heads"][1].update(name="mlp:9"), "predictions.csv: .*'mlp:9' is missing"),
    ],
)
def test_json_with_damage_is_an_error_that_says_which(
    tmp_path: Path, name: str, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    run = written(tmp_path / "run")
    edit_json(run.directory / name, change)
    with pytest.raises(RunError, match=message):
        read_run(run.directory)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "predictions.csv",
            lambda lines: ["\n" for _ in lines],
            "predictions.csv: the run is damaged: it has no rows",
        ),
        ("predictions.csv", lambda lines: lines[:1], "predictions.csv: the run is damaged: it has no rows"),
        ("predictions.csv", lambda lines: lines[:-1], "1 rows of the split test and label 'malignant', 2 by config"),
        ("predictions.csv", lambda lines: lines[:-4], "0 rows of the split test"),
        ("predictions.csv", lambda lines: [*lines, lines[-1]], "3 rows of the split test"),
        ("predictions.csv", lambda lines: [*lines[:-1], lines[-1][:9]], "predictions.csv: the run is damaged"),
        ("predictions.csv", lambda lines: [*lines[:-1], lines[-1][:30]], "predictions.csv: the run is damaged"),
        (
            "predictions.csv",
            lambda lines: [lines[0], "x" * 200_000 + "\n"],
            "predictions.csv: the run is damaged: field larger",
        ),
        ("predictions.csv", lambda lines: lines[1:], "predictions.csv: the run is damaged: .* is missing"),
        (
            "predictions.csv",
            lambda lines: [*lines[:-1], "a,a,test,malignant,0.5,nan\n"],
            "the column of mlp:8 contains values",
        ),
        (
            "predictions.csv",
            lambda lines: [*lines[:-1], "a,a,test,malignant,1.5,0.5\n"],
            "the column of linear contains",
        ),
        ("predictions.csv", lambda lines: [*lines[:-1], lines[-1].rstrip()[:-9]], "its last line is incomplete"),
        ("history.csv", lambda lines: lines[1:], "history.csv: the run is damaged: 'head' is missing"),
        ("history.csv", lambda lines: [*lines[:-1], lines[-1][:9]], "history.csv: the run is damaged"),
    ],
)
def test_table_with_damage_is_an_error_that_says_which(
    tmp_path: Path, name: str, change: Callable[[list[str]], list[str]], message: str
) -> None:
    run = written(tmp_path / "run")
    edit_lines(run.directory / name, change)
    with pytest.raises(RunError, match=message):
        read_run(run.directory)


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "predictions.csv", "history.csv"])
def test_file_cut_off_anywhere_is_an_error_or_harmless(tmp_path: Path, name: str) -> None:
    run = written(tmp_path / "run")
    whole = (run.directory / name).read_bytes()
    for end in range(0, len(whole), max(1, len(whole) // 40)):
        (run.directory / name).write_bytes(whole[:end])
        write_digests(run.directory)
        try:
            read = read_run(run.directory)
        except RunError:
            continue
        assert same(replace(read, history=()), replace(run, history=()))
