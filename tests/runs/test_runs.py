"""The run folder: written whole or not at all, read back as it was, and never written over anything else."""

import csv
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hoarfrost.evaluation import Scores
from hoarfrost.features.errors import RunError
from hoarfrost.runs import (
    CrossValidated,
    CrossValidation,
    DatasetFacts,
    EmbeddingFacts,
    Epoch,
    HeadResult,
    LearningPoint,
    OutOfFold,
    Predictions,
    ReferenceResult,
    Run,
    SeedResult,
    UnreadableImage,
    check_run_directory,
    class_numbers,
    from_json,
    read_run,
    write_run,
)
from hoarfrost.runs.digests import write_digests
from hoarfrost.runs.folder import FORMAT_VERSION
from hoarfrost.runs.optimistic import metrics_marked
from tests.support.made_runs import run_config

# What a file system, and so a dataset, can hold: Latin-1 bytes come through as surrogates.
ODD_NAMES = (
    "Gänge/Höhle 1.png",
    'a,b "quoted".png',
    "two\nlines\r\nand\rmore.png",
    "<script>alert(1)</script>.png",
    "=HYPERLINK(1).png",
    os.fsdecode("gr\xfcn.png".encode("latin-1")),
    "\N{LINE SEPARATOR}\N{ZERO WIDTH SPACE}\N{RIGHT-TO-LEFT OVERRIDE}😀",
    " leading and trailing ",
    "'; --",
)
names = st.sampled_from(ODD_NAMES) | st.binary(min_size=1, max_size=12).map(
    lambda content: os.fsdecode(content.replace(b"\0", b"0"))
)
SPLITS = ("train", "val", "test")
SCORES = from_json(
    {"n": 4, "accuracy": 0.75, "majority_accuracy": 0.5, "loss": 0.6, "roc_auc": 0.8, "roc_auc_ci95": [0.7, 0.9]},
    Scores,
)


def make_run(
    directory: Path,
    *,
    labels: tuple[str, ...] = ("benign", "malignant"),
    positive: tuple[str, ...] | None = ("malignant",),
    heads: tuple[str, ...] = ("linear", "mlp:8"),
    odd: str = "a",
    with_test: bool = True,
) -> Run:
    """Make a small run: two images of each label in each split, `odd` in every free text."""
    rng = np.random.default_rng(0)
    splits = SPLITS if with_test else SPLITS[:2]
    rows = [(split, label) for split in splits for label in labels for _ in range(2)]
    n_classes = len(labels) if positive is None else 2
    run = Run(
        directory,
        replace(
            run_config(
                DatasetFacts(
                    name=odd,
                    source=odd,
                    classes=labels,
                    positive=positive,
                    split_by="patient",
                    n_images=len(rows) + 1,
                    n_patients=None,
                    counts={split: dict.fromkeys(labels, 2) for split in splits},
                    n_split={split: 2 * len(labels) for split in splits},
                    unreadable=(UnreadableImage(odd, f"truncated: {odd}"),),
                )
            ),
            command=f"hoarfrost train --cache '{odd}'",
            embeddings=EmbeddingFacts(odd, "f" * 64, "resnet18", odd, "a" * 64, {"resize": [224, 224]}, "float32"),
            warnings=(odd,),
        ),
        heads[0],
        tuple(
            HeadResult(
                head, 1026, 1e-3, 1e-2, 0.0, 1, 2, f"heads/{i}.safetensors", SCORES, SCORES if with_test else None,
                (SeedResult(0, 0.8, 0.8 if with_test else None, 1, 2),), (odd,),
            )
            for i, head in enumerate(heads)
        ),
        (ReferenceResult("logistic regression", 4, SCORES, SCORES if with_test else None),),
        CrossValidation(2, 6, (heads[0], heads[-1]), (CrossValidated(odd, SCORES, (0.5, 0.75)),)),
        (LearningPoint(0.5, 3, 6, (0.5, 0.75)),),
        tuple(Epoch(head, 0, epoch, 0.1 + epoch / 3, 0.7, 0.8, 1e-3) for head in heads for epoch in (1, 2)),
        Predictions(
            tuple(f"{odd}{i}" for i in range(len(rows))),
            tuple(odd for _ in rows),
            tuple(split for split, _ in rows),
            tuple(label for _, label in rows),
            {head: some_probabilities(rng, len(rows), n_classes) for head in heads},
        ),
        OutOfFold(
            tuple(i % 3 - 1 for i in range(len(rows))),
            {odd: np.where(np.arange(len(rows))[:, None] % 3 > 0, some_probabilities(rng, len(rows), n_classes), np.nan)},
        ),
    )  # fmt: skip
    # As `train` marks what the validated images selected.
    return replace(run, **metrics_marked(vars(run)))


def some_probabilities(rng: np.random.Generator, n: int, n_classes: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    odds = rng.random((n, n_classes))
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    if n_classes == 2:  # of two, one is kept and the other is what is left to 1
        probabilities[:, 0] = 1 - probabilities[:, 1]
    return np.asarray(probabilities)


def same(one: Run, other: Run) -> bool:
    """Compare two runs, arrays and all."""
    assert one.out_of_fold is not None
    assert other.out_of_fold is not None
    bare_one, bare_other = (
        replace(r, predictions=replace(r.predictions, probabilities={}, truth=None), out_of_fold=None)
        for r in (one, other)
    )
    pairs = (
        (one.predictions.probabilities, other.predictions.probabilities),
        (one.out_of_fold.probabilities, other.out_of_fold.probabilities),
    )
    return (
        bare_one == bare_other
        and one.out_of_fold.folds == other.out_of_fold.folds
        and np.array_equal(one.y_true(), other.y_true())
        and all(list(mine) == list(theirs) for mine, theirs in pairs)
        and all(np.array_equal(mine[head], theirs[head], equal_nan=True) for mine, theirs in pairs for head in mine)
    )


def written(directory: Path, **changes: Any) -> Run:
    overwrite = changes.pop("overwrite", False)
    run = make_run(directory, **changes)
    write_run(run, {"0.safetensors": b"weights", "1.safetensors": b"more weights"}, overwrite=overwrite)
    return run


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


# -- round trip ---------------------------------------------------------------------------------------------------------


def test_run_folder_holds_the_files_of_the_contract(tmp_path: Path) -> None:
    written(tmp_path / "run")
    assert list(contents(tmp_path / "run")) == [
        "SHA256SUMS", "config.json", "heads/0.safetensors", "heads/1.safetensors", "history.csv", "metrics.json",
        "out_of_fold.csv", "predictions.csv",
    ]  # fmt: skip
    assert os.listdir(tmp_path) == ["run"]


@settings(max_examples=60)
@given(names, st.lists(names, min_size=2, max_size=4, unique=True), st.booleans(), st.booleans())
@example(odd=ODD_NAMES[5], labels=[ODD_NAMES[5], ODD_NAMES[2]], binary=True, with_test=True)
def test_run_reads_back_as_it_was_written_whatever_the_names(
    odd: str, labels: list[str], binary: bool, with_test: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = written(
            Path(folder) / "run",
            labels=tuple(labels),
            positive=tuple(labels[1:]) if binary else None,
            odd=odd,
            with_test=with_test,
        )
        assert same(read_run(run.directory), run)


def test_binary_run_has_one_column_a_head_and_more_classes_one_a_class(tmp_path: Path) -> None:
    written(tmp_path / "two")
    written(tmp_path / "three", labels=("a", "b", "c"), positive=None)
    headers = [(tmp_path / run / "predictions.csv").read_text().splitlines()[0] for run in ("two", "three")]
    assert headers == [
        "path,patient,split,label,linear,mlp:8",
        "path,patient,split,label,linear:a,linear:b,linear:c,mlp:8:a,mlp:8:b,mlp:8:c",
    ]


def test_run_of_a_later_minor_version_is_read_and_its_new_keys_passed_over(tmp_path: Path) -> None:
    run = written(tmp_path / "run")
    for name in ("config.json", "metrics.json"):
        edit_json(tmp_path / "run" / name, lambda content: content.update({"new": 1}))
    assert same(read_run(run.directory), run)


def test_class_numbers_follow_the_classes_or_the_positive_labels() -> None:
    assert class_numbers(["b", "a", "c"], ["a", "b", "c"], None).tolist() == [1, 0, 2]
    assert class_numbers(["b", "a", "c"], ["a", "b", "c"], ["a", "c"]).tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="'d' is not one of the classes a, b"):
        class_numbers(["d"], ["a", "b"], None)


# -- where a run may be written -----------------------------------------------------------------------------------------


def test_run_goes_into_a_folder_that_is_missing_with_its_parents(tmp_path: Path) -> None:
    run = written(tmp_path / "runs" / "of today" / "run")
    assert same(read_run(run.directory), run)


def test_run_goes_into_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    run = written(tmp_path / "run")
    assert same(read_run(tmp_path / "run"), run)


def test_run_replaces_an_earlier_run_but_its_report_only_when_told_to(tmp_path: Path) -> None:
    first = written(tmp_path / "run", odd="first")
    assert check_run_directory(tmp_path / "run") == first.config
    (tmp_path / "run" / "report.html").write_text("of the first")
    with pytest.raises(RunError, match=r"its report \(report.html\)\. Nothing was written .*--overwrite.*--run"):
        written(tmp_path / "run", odd="second")
    assert same(read_run(tmp_path / "run"), first)
    second = written(tmp_path / "run", odd="second", heads=("mlp:16",), overwrite=True)
    assert same(read_run(tmp_path / "run"), second)
    assert not (tmp_path / "run" / "report.html").exists()
    assert os.listdir(tmp_path) == ["run"]


def test_link_to_a_run_folder_stays_a_link(tmp_path: Path) -> None:
    written(tmp_path / "elsewhere", odd="first")
    (tmp_path / "run").symlink_to("elsewhere")
    second = written(tmp_path / "run", odd="second")
    assert (tmp_path / "run").is_symlink()
    assert same(read_run(tmp_path / "elsewhere"), replace(second, directory=tmp_path / "elsewhere"))
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "run"]


def refused_places(root: Path) -> dict[str, tuple[Path, str]]:
    """Make places that no run may be written to: path, and what the message says."""
    for name in ("photos", "other tool", "listed", "newer", "broken", "with notes", "with heads"):
        (root / name).mkdir()
    (root / "photos" / "holiday.jpg").write_bytes(b"dear")
    (root / "a file").write_text("dear")
    (root / "other tool" / "config.json").write_text('{"model": "dear"}')
    (root / "listed" / "config.json").write_text("[1, 2]")
    (root / "broken" / "config.json").write_text('{"format": "hoarf')
    (root / "loop").symlink_to("loop")
    for name, extra in (("with notes", "notes.txt"), ("with heads", "heads/of another tool.pt")):
        (root / name).rmdir()
        written(root / name)
        (root / name / extra).write_text("dear")
    written(root / "newer")
    edit_json(root / "newer" / "config.json", lambda content: content.update({"format_version": FORMAT_VERSION + 1}))
    other = "is not from an earlier run .*Nothing was written there. Remove the folder, or name another one with --run"
    return {
        "folder of something else": (
            root / "photos",
            r"photos is not empty and does not contain an earlier run .*--run",
        ),
        "file": (root / "a file", "a file is a file. A run needs a folder.*--run"),
        "below a file": (root / "a file" / "run", "a file is a file. A run needs a folder.*--run"),
        "config.json of another tool": (root / "other tool", other),
        "config.json that is a list": (root / "listed", other),
        "broken config.json": (root / "broken", other),
        "run of a newer version": (root / "newer", f"{other}.*written by a newer hoarfrost"),
        "run with notes": (root / "with notes", r"also notes\.txt, which would be lost\. Move notes\.txt.*--run"),
        "run with other heads": (root / "with heads", r"also heads/of another tool\.pt, which would be lost"),
        "name too long": (root / ("x" * 300), "cannot be used as a run folder: .*name too long.*--run"),
        "link to itself": (root / "loop", "(cannot be used as a run folder|cannot be written).*--run"),
    }


@pytest.mark.parametrize("case", [
    "folder of something else", "file", "below a file", "config.json of another tool", "config.json that is a list",
    "broken config.json", "run of a newer version", "run with notes", "run with other heads", "name too long",
    "link to itself",
])  # fmt: skip
def test_place_of_something_else_is_refused_and_left_alone(tmp_path: Path, case: str) -> None:
    place, message = refused_places(tmp_path)[case]
    before = contents(tmp_path)
    with pytest.raises(RunError, match=f"(?s){message}"):
        written(place)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", [".", "..", "../.."])
def test_current_folder_and_those_above_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(RunError, match=r"is the current folder or contains it.* Name a folder below .*with --run"):
        check_run_directory(Path(name))


# -- failures while writing ---------------------------------------------------------------------------------------------


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "call", ["os.fsync", "pathlib.Path.write_bytes", "hoarfrost.features.files.whole._put_in_place"]
)
def test_earlier_run_survives_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    first = written(tmp_path / "run", odd="first")
    monkeypatch.setattr(call, full_disk)
    with pytest.raises(RunError, match=r"run: the run cannot be written: .*No space left on device.*--run"):
        written(tmp_path / "run", odd="second")
    monkeypatch.undo()
    assert same(read_run(tmp_path / "run"), first)
    assert os.listdir(tmp_path) == ["run"]


def test_earlier_run_is_put_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = written(tmp_path / "run", odd="first")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            full_disk()
        return rename(self, target)

    monkeypatch.setattr("hoarfrost.features.files.whole.exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(RunError, match="No space left on device"):
        written(tmp_path / "run", odd="second")
    monkeypatch.undo()
    assert same(read_run(tmp_path / "run"), first)
    assert os.listdir(tmp_path) == ["run"]


def test_run_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RunError, match="No space left on device"):
        written(tmp_path / "run")
    assert os.listdir(tmp_path) == []


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    write_digests(path.parent)  # a writer with an error, not a file that was changed


@pytest.mark.parametrize("odd", ["=cmd|' /C calc'!A0", "+1", "-x", "@sum", "'quoted", "'=both", "\tx"])
def test_cells_that_a_spreadsheet_would_run_are_marked_and_read_back(tmp_path: Path, odd: str) -> None:
    run = written(tmp_path / "run", odd=odd)
    with (tmp_path / "run" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row[:4]]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t")) for cell in cells)
    assert same(read_run(run.directory), run)
