"""The run folder: written complete or not at all; read back and checked for contradictions."""

import csv
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from hoarfrost.evaluation import Comparison
from hoarfrost.evaluation.leakage import Leakage
from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.evaluation.shortcuts import AttributeAudit
from hoarfrost.features.errors import RunError
from hoarfrost.features.files.whole import check_writable, put_right, whole_folder
from hoarfrost.heads.config import TrainingConfig
from hoarfrost.runs.acquisition import Acquisition
from hoarfrost.runs.covariates import Covariates
from hoarfrost.runs.decoding import from_json, to_json
from hoarfrost.runs.digests import DIGESTS, check_digest, write_digests
from hoarfrost.runs.external import External
from hoarfrost.runs.left_out import HELD_OUT, MIXED, LeftOut
from hoarfrost.runs.lock import LOOKS, read_looks, write_looks
from hoarfrost.runs.optimistic import metrics_marked
from hoarfrost.runs.outlook import outlook_of, precision_of_run
from hoarfrost.runs.records import (
    ComparedViews,
    HeadResult,
    Predictions,
    ReferenceResult,
    Run,
    RunConfig,
    RunHeads,
    class_numbers,
)
from hoarfrost.runs.resampled import CrossValidation, LearningPoint, RepeatedSplits
from hoarfrost.runs.sealed import (
    METRICS_FILE,
    PREDICTIONS_FILE,
    SEALED,
    finish_look,
    hidden,
    record_look,
    seal,
    sealed_file,
)
from hoarfrost.runs.tables import (
    read_attributes,
    read_history,
    read_out_of_fold,
    read_predictions,
    read_repeated,
    read_table,
    write_attributes,
    write_history,
    write_out_of_fold,
    write_predictions,
    write_repeated,
)
from hoarfrost.runs.tensorboard import write_tensorboard
from hoarfrost.runs.trust import Assessment, Suspects

FORMAT = "hoarfrost-run"
FORMAT_VERSION = 8  # of runs whose test scores are in an archive until the first look
EVALUATED_VERSION = 7
TRAINED_VERSION = 6  # of all others: an earlier hoarfrost reads them too
OLDEST_VERSION = 4
DIGESTS_SINCE = 6  # earlier versions do not have them
REPORT = "report.html"  # what `hoarfrost report` adds to a run
_TABLES = (
    "config.json", "metrics.json", "predictions.csv", "attributes.csv", "out_of_fold.csv", "repeats.csv", "left_out.csv",
    "history.csv",
)  # fmt: skip
# The errors of parsers and conversions on content that this program did not write.
_DAMAGE = (
    OSError, ValueError, TypeError, AttributeError, IndexError, RecursionError, csv.Error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
OWN_FILES = frozenset({*_TABLES, DIGESTS, LOOKS, SEALED, "heads", "tensorboard", REPORT})
METRICS: dict[str, Any] = {
    "selected": str,
    "heads": tuple[HeadResult, ...],
    "references": tuple[ReferenceResult, ...],
    "comparisons": tuple[Comparison, ...],
    "assessment": Assessment | None,
    "cross_validation": CrossValidation | None,
    "learning_curve": tuple[LearningPoint, ...],
    "leakage": Leakage | None,
    "shortcuts": tuple[AttributeAudit, ...],
    "suspects": Suspects | None,
    "views": ComparedViews | None,
    "repeats": RepeatedSplits | None,
    "acquisition": Acquisition | None,
    "left_out": LeftOut | None,
    "external": External | None,
    "covariates": Covariates | None,
}
"""The parts of a run that `metrics.json` contains."""
# Which runs of the same version may lack.
_LATER_PARTS = frozenset({"views", "repeats", "external", "acquisition", "left_out", "covariates"})
SCORES = ("accuracy", "loss", "majority_accuracy", "roc_auc")
"""The scores that every reader of a run relies on; the last one with its interval."""


def metrics_document(run: Run) -> dict[str, Any]:
    """Return the content of `metrics.json`, which `train --json` prints too."""
    parts = {name: getattr(run, name) for name in METRICS}
    if run.external is None:  # a run of `train`
        del parts["external"]
    found: dict[str, Any] = to_json(parts)
    # Derived from the configuration, the scores and the predictions, so not read back.
    found |= to_json({"precision": precision_of_run(run), "extrapolation": outlook_of(run)})
    first = {"selected": run.selected, "no_test_split": run.config.dataset.no_test_split}
    return {**first, **found, "splits": to_json(run.split_sizes())}


def check_run_directory(directory: Path, *, overwrite: bool = False, evaluates: bool = False) -> RunConfig | None:
    """Return the configuration of the run that a new one would replace, or None; refuse other content.

    A run that has a report is refused too, unless `overwrite` is true. `evaluates` is whether an evaluation will be written,
    which replaces only evaluations.

    Raises
    ------
    RunError
        If `directory` is a file, the current folder, or a folder with content that is not an earlier run.
    """
    option = _option(evaluates=evaluates)
    try:
        place = _put_right(directory)
        if Path.cwd().is_relative_to(place):
            raise RunError(
                f"{directory} is the current folder or contains it. A run replaces its whole folder. "
                f"Name a folder below the current one with {option}."
            )
        existing = next(folder for folder in (place, *place.parents) if folder.exists())
        if not existing.is_dir():
            raise RunError(f"{existing} is a file. A run needs a folder. Name another one with {option}.")
        has_content = existing == place and any(place.iterdir())
        earlier = _earlier_run(directory, option, overwrite=overwrite) if has_content else None
        if earlier is not None and bool(earlier.evaluates) != evaluates:
            what = "an evaluation" if earlier.evaluates else "a run of `train`"
            raise RunError(
                f"{directory} contains {what}. Nothing was written there. Name another folder with {option}."
            )
        check_writable(place.parent if existing == place else existing)
        return earlier
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise RunError(
            f"{directory} cannot be used as a run folder: {error}. Name another one with {option}."
        ) from error


def _option(*, evaluates: bool) -> str:
    """Return the option that names the folder on the command line."""
    return "--output" if evaluates else "--run"


def _put_right(directory: Path) -> Path:
    """Return the folder without links, after the leavings of killed processes are removed."""
    place = directory.resolve()
    put_right(place)
    put_right(place / REPORT)
    return place


def _earlier_run(directory: Path, option: str, *, overwrite: bool) -> RunConfig:
    """Return the configuration of an earlier run; refuse a folder with anything that `train` did not write."""
    if not (directory / "config.json").is_file():
        raise RunError(
            f"{directory} is not empty and does not contain an earlier run (config.json is missing). Nothing was written "
            f"there. Name another folder with {option}."
        )
    try:
        config = _read_config(directory)
    except RunError as error:
        raise RunError(
            f"{directory} is not empty, and its config.json is not from an earlier run of this version. Nothing was written "
            f"there. Remove the folder, or name another one with {option}. ({error})"
        ) from error
    foreign = [entry.name for entry in directory.iterdir() if entry.name not in OWN_FILES]
    foreign += [f"heads/{entry.name}" for entry in directory.glob("heads/*") if entry.suffix != ".safetensors"]
    if foreign:
        raise RunError(
            f"{directory} contains an earlier run and also {min(foreign)}, which would be lost. "
            f"Move {min(foreign)} to another place, or name another folder with {option}."
        )
    if (directory / REPORT).exists() and not overwrite:
        raise RunError(
            f"{directory} contains the run of {config.created} and its report ({REPORT}). Nothing was written there. "
            f"Replace both with --overwrite, or name another folder with {option}."
        )
    return config


def write_run(
    run: Run, head_files: Mapping[str, bytes], *, with_tensorboard: bool = False, overwrite: bool = False
) -> None:
    """Write a run folder, complete or not at all; an earlier run in the same place is replaced.

    Parameters
    ----------
    run : Run
        With the folder to write, `directory`.
    head_files : mapping of file name -> bytes
        The content of `DIR/heads/`.
    with_tensorboard : bool
        Also write the training curves to `DIR/tensorboard/`.
    overwrite : bool
        Also replace a run that has a report.

    Raises
    ------
    RunError
        If the folder holds something that is not a run, or cannot be written.
    """
    is_evaluation = bool(run.config.evaluates)
    check_run_directory(run.directory, overwrite=overwrite, evaluates=is_evaluation)
    try:
        with whole_folder(run.directory) as staging:
            (staging / "heads").mkdir()
            is_locked = run.config.plan is not None and not is_evaluation
            version = EVALUATED_VERSION if is_evaluation else FORMAT_VERSION if is_locked else TRAINED_VERSION
            header = {"format": FORMAT, "format_version": version}
            _write_json(staging / "config.json", header | to_json(run.config))
            _write_scores(staging, run)
            if is_locked:
                seal(staging)
                _write_scores(staging, hidden(run))
            if run.attributes:
                write_attributes(staging / "attributes.csv", run.attributes, run.predictions.paths)
            if run.out_of_fold is not None:
                write_out_of_fold(staging / "out_of_fold.csv", run.out_of_fold, run.predictions, run.config.dataset)
            if run.by_site is not None:
                write_out_of_fold(staging / "left_out.csv", run.by_site, run.predictions, run.config.dataset)
            if run.repeated is not None:
                write_repeated(staging / "repeats.csv", run.repeated, run.predictions, run.config.dataset)
            write_history(staging / "history.csv", run.history)
            for name, content in head_files.items():
                (staging / "heads" / name).write_bytes(content)
            if with_tensorboard:
                write_tensorboard(staging / "tensorboard", run.history)
            if is_locked:
                write_looks(staging / LOOKS, run.looks)
            write_digests(staging)
            # Again: a report may have been written meanwhile.
            check_run_directory(run.directory, overwrite=overwrite, evaluates=is_evaluation)
    except OSError as error:
        option = _option(evaluates=is_evaluation)
        raise RunError(
            f"{run.directory}: the run cannot be written: {error}. Name another folder with {option}."
        ) from error


def _write_scores(directory: Path, run: Run) -> None:
    _write_json(directory / METRICS_FILE, metrics_document(run))
    write_predictions(directory / PREDICTIONS_FILE, run.predictions, run.config.dataset)


def read_looked_at(directory: Path, command: str) -> Run:
    """Read a run for a command that shows its test scores; with a locked test split this is counted as a look.

    Raises
    ------
    RunError
        As `read_run`, and then nothing is counted; or if the look cannot be recorded.
    """
    run = read_run(directory)
    return run if record_look(directory, command) is None else read_run(directory)


def read_run(directory: Path, *, before_look: bool = False) -> Run:
    """Read a run folder back.

    Parameters
    ----------
    directory : Path
    before_look : bool
        Read the scores of a locked test split too. The caller shows none of them before `record_look` has counted that.

    Raises
    ------
    RunError
        If the folder is missing, is not a run, was written by a newer version or is damaged.
    """
    config, found = _read_config(directory), _read_metrics(directory, METRICS, before_look=before_look)
    heads, cross_validation = found["heads"], found["cross_validation"]
    with _reading(directory / PREDICTIONS_FILE) as path:
        place = sealed_file(directory, path.name) if before_look else path
        may_lack = config.plan is not None and not config.evaluates
        predictions = read_predictions(place, [head.name for head in heads], config.dataset, may_lack=may_lack)
        _check_predictions(predictions, heads, config)
    with _reading(directory / "attributes.csv") as path:
        attributes = read_attributes(path, predictions.paths) if path.is_file() else {}
    out_of_fold = None
    if cross_validation is not None:
        with _reading(directory / "out_of_fold.csv") as path:
            names = [result.name for result in cross_validation.results]
            out_of_fold = read_out_of_fold(path, names, config.dataset, predictions.paths)
    by_site = None
    if found["left_out"] is not None:
        with _reading(directory / "left_out.csv") as path:
            by_site = read_out_of_fold(path, (HELD_OUT, MIXED), config.dataset, predictions.paths)
    repeated = None
    if found["repeats"] is not None:
        with _reading(directory / "repeats.csv") as path:
            repeated = read_repeated(path, found["repeats"].n_splits, config.dataset, predictions.paths)
    with _reading(directory / "history.csv") as path:
        history = read_history(path)
    return Run(
        directory, config, history=history, predictions=predictions, out_of_fold=out_of_fold, repeated=repeated,
        by_site=by_site, attributes=attributes, looks=read_looks(directory), **found,
    )  # fmt: skip


def read_splits(directory: Path) -> dict[str, str]:
    """Read the split of each image of a run, by path; raise RunError as `read_run` does."""
    finish_look(directory)
    with _reading(directory / PREDICTIONS_FILE) as path:
        return {row["path"]: row["split"] for row in read_table(path)}


def read_heads(directory: Path) -> RunHeads:
    """Read the parts of a run that using its heads needs, without its predictions, one per image.

    Raises
    ------
    RunError
        As `read_run`.
    """
    config = _read_config(directory)
    if config.evaluates:
        raise RunError(
            f"{directory} is an evaluation ({config.evaluates}), and has no head to use. Name the run or the head file."
        )
    return RunHeads(directory, config, **_read_metrics(directory, ("selected", "heads")))


def _read_metrics(directory: Path, names: Iterable[str], *, before_look: bool = False) -> dict[str, Any]:
    with _reading(directory / METRICS_FILE) as path:
        place = sealed_file(directory, path.name) if before_look else path
        metrics = json.loads(place.read_text(encoding="utf-8", errors="surrogateescape"))
        found = {
            name: from_json(metrics.get(name) if name in _LATER_PARTS else metrics[name], METRICS[name])
            for name in names
        }
        found = metrics_marked(found)
        _check_heads(found["selected"], found["heads"], (ROC_AUC,) if found.get("external") else SCORES)
    return found


@contextmanager
def _reading(path: Path) -> Iterator[Path]:
    """Check a file of a run; turn an error in reading it into one that names the file and the way out."""
    again = "Remove the folder and train again."
    try:
        check_digest(path.parent, path)
        yield path
    except FileNotFoundError as error:
        raise RunError(f"{path.parent}: the run is incomplete, {path.name} is missing. {again}") from error
    except KeyError as error:
        raise RunError(f"{path}: the run is damaged: {error} is missing. {again}") from error
    except _DAMAGE as error:
        raise RunError(f"{path}: the run is damaged: {error}. {again}") from error


def _check_heads(selected: str, heads: Sequence[HeadResult], required: Sequence[str]) -> None:
    """Refuse results without the scores that every reader of a run relies on."""
    if selected not in [head.name for head in heads]:
        raise ValueError(f"the selected head {selected!r} is not one of the run's heads")
    for head in heads:
        known = (
            (head.val,) if head.val.n else ()
        )  # an evaluation may know nothing of the images that validated the head
        for scores in (*known, head.test or head.val):
            missing = [key for key in required if key not in scores or scores[key].value is None]
            if missing:
                raise ValueError(f"the score {missing[0]} of the head {head.name} is missing")
            if scores.auc.interval is None and not scores.auc.why_none:
                raise ValueError(f"the interval of the ROC AUC of the head {head.name} is missing")


def _check_predictions(predictions: Predictions, heads: Sequence[HeadResult], config: RunConfig) -> None:
    """Refuse rows that contradict the counts in config.json or the scores in metrics.json."""
    dataset = config.dataset
    if predictions.truth is None:
        class_numbers(predictions.labels, dataset.classes, dataset.positive)
        found = Counter(zip(predictions.splits, predictions.labels, strict=True))
    else:
        pairs = zip(predictions.splits, predictions.truth == 1, strict=True)
        found = Counter((split, dataset.classes[i]) for split, has in pairs for i in np.flatnonzero(has))
    counted = Counter({(split, label): n for split, labels in dataset.counts.items() for label, n in labels.items()})
    if found != counted:
        split, label = min(key for key in found | counted if found[key] != counted[key])
        raise ValueError(
            f"{found[split, label]} rows of the split {split} and label {label!r}, {counted[split, label]} by config.json"
        )
    if Counter(predictions.splits) != dataset.n_split:
        raise ValueError(f"its splits have {dict(Counter(predictions.splits))} rows, {dataset.n_split} by config.json")
    validated = set() if config.evaluates else {"val" if config.n_cross_fit is None else "train"}
    scored = validated | {"test" for head in heads if head.test is not None}
    if not scored <= dataset.counts.keys():
        raise ValueError("a split that metrics.json scores has no rows")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")  # names that are not UTF-8 are kept unchanged


def _read_config(directory: Path) -> RunConfig:
    with _reading(directory / "config.json") as path:
        _put_right(directory)
        finish_look(directory)
        if not path.is_file():
            if directory.is_file():
                raise RunError(f"{directory} is a file. A run is a folder: name the one that `train --run` wrote.")
            raise RunError(
                f"{directory} is not a run folder (config.json is missing). "
                f"Create one with: hoarfrost train --cache FILE --run {directory}"
            )
        content = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise RunError(
                f'{path} is not the configuration of a run ("format": "{FORMAT}" is missing). Check the path.'
            )
        if content["format_version"] > FORMAT_VERSION:
            raise RunError(
                f"{directory} was written by a newer hoarfrost (run format {content['format_version']}, "
                f"this one reads up to {FORMAT_VERSION}). Upgrade hoarfrost, or train again."
            )
        if content["format_version"] < OLDEST_VERSION:
            raise RunError(
                f"{directory} was written by an older hoarfrost (run format {content['format_version']}). Train again."
            )
        if content["format_version"] >= DIGESTS_SINCE and not (directory / DIGESTS).is_file():
            raise RunError(
                f"{directory}: the run is incomplete, {DIGESTS} is missing. Remove the folder and train again."
            )
        for field in fields(TrainingConfig):
            content[field.name]  # its default would hide that it is missing
        return from_json(content, RunConfig)
