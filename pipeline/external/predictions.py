"""Any model's predictions, from CSVs: the same assessment as for a head, without images, embeddings or a cache."""

import filecmp
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from hoarfrost.evaluation import Scores
from hoarfrost.evaluation.operating import Rule
from hoarfrost.evaluation.units import patient_numbers
from hoarfrost.experiment.assessment import Fixed
from hoarfrost.experiment.facts import dataset_facts, machine_used, versions_used
from hoarfrost.experiment.scored import ScoredTask
from hoarfrost.experiment.splits import EXTERNAL
from hoarfrost.external.aggregate import check_place, share_only
from hoarfrost.external.evaluation import assessed, bare_result, evaluation_config, evaluation_run, scored
from hoarfrost.external.one_class import check_classes
from hoarfrost.external.table import CALL, PROBABILITY, ColumnOptions, ModelColumn, PredictionTable, read_predictions
from hoarfrost.external.thresholds import fixed_for
from hoarfrost.external.updating import updates_of
from hoarfrost.features.cache import DatasetTable
from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.datasets.table import split_of
from hoarfrost.features.errors import DatasetError, RunError, TrainingError
from hoarfrost.heads.config import TrainingConfig
from hoarfrost.runs import (
    EmbeddingFacts,
    External,
    HeadResult,
    Run,
    RunConfig,
    check_run_directory,
    record_look,
    write_run,
)
from hoarfrost.runs.lock import is_locked
from hoarfrost.runs.records import AS_CALLED, STATED
from hoarfrost.runs.sealed import PREDICTIONS_FILE, SEALED, finish_look

NO_EMBEDDINGS = EmbeddingFacts("", "", "", "", "", {}, "")
OF_PROBABILITIES = ("loss", "brier")  # metrics that scores and calls do not have


@dataclass(frozen=True, kw_only=True)
class PredictionsConfig:
    """How predictions are evaluated.

    Attributes
    ----------
    columns : ColumnOptions
    operating_point : str
        The rule of the primary operating point, as `Rule.parse` reads it; "threshold=0.3" states a threshold, of scores on
        their own scale.
    validation_split : str
        The split whose rows fix thresholds and temperature. The model must not have learned from them.
    per_patient : "mean", "max" or None
        Score patients, by their rows' probabilities.
    prevalence : float or None
        Of the positive class where the model will be used.
    name : str or None
        The name of the rows; by default that of the first file.
    aggregate : Path or None
        Write this file, without a row of a patient, in place of an evaluation folder.
    overwrite : bool
        Replace an earlier evaluation even if it has a report, or an earlier `aggregate`.
    """

    columns: ColumnOptions = field(default_factory=ColumnOptions)
    operating_point: str = "youden"
    validation_split: str = "val"
    per_patient: str | None = None
    prevalence: float | None = None
    name: str | None = None
    aggregate: Path | None = None
    overwrite: bool = False


def evaluate_predictions(
    files: Sequence[Path], output: Path | None, *, config: PredictionsConfig | None = None, command: Sequence[str] = ()
) -> Run:
    """Evaluate the predictions of one model or several on the same rows, and write an evaluation folder.

    Parameters
    ----------
    files : sequence of Path
        See `hoarfrost.external.table.read_predictions`. The others are compared with the first model by paired tests.
    output : Path or None
        The folder to write; by default beside the first file: FILE-evaluated.
    config : PredictionsConfig, optional
    command : sequence of str
        The command that the user typed, for the record.

    Returns
    -------
    Run
        With `external`, and the scored rows as its test split.

    Raises
    ------
    HoarfrostError
        One of its children: a file, its cells, files that do not fit one another, the output.
    """
    started, config = time.monotonic(), config or PredictionsConfig()
    output = config.aggregate or output or files[0].with_name(f"{files[0].stem}-evaluated")
    if config.aggregate is None:
        check_run_directory(output, overwrite=config.overwrite, evaluates=True)
    else:
        check_place(config.aggregate, overwrite=config.overwrite)
    locked = {run: file for file in files for run in _locked_runs_of(file)}
    first, *others = (read_predictions(file, config.columns) for file in files)
    models = list(_models(first, others))
    task, rows, dropped = _task(first, config)
    notes = [dropped, *(_ignored(table) for table in (first, *others))]
    models = [replace(model, p=model.p[rows]) for model in models]
    found = _with_looks(_evaluated(output, task, models, config, command, started, notes), locked)
    if config.aggregate is None:
        write_run(found, {}, overwrite=config.overwrite)
    else:
        share_only(config.aggregate, found, task, models[0].p, "")
    return found


# -- predictions of a locked test split ---------------------------------------------------------------------------------


def _locked_runs_of(file: Path) -> Iterator[Path]:
    """Yield the run with a locked test split whose predictions a file holds, if it is there or in a folder beside the file.

    Raises
    ------
    RunError
        If nobody has looked at the test split yet, so that the file does not have its predictions.
    """
    if not file.is_file():
        return
    folder = file.resolve().parent
    for run in (folder, *sorted(path.parent for path in folder.glob("*/config.json"))):
        if not is_locked(run):
            continue
        finish_look(run)
        own = run / PREDICTIONS_FILE
        if own.is_file() and filecmp.cmp(own, file, shallow=False):
            if (run / SEALED).is_file():
                raise RunError(
                    f"{file}: the test split of the run {run} is locked, and nobody has looked at it yet: the file does not "
                    f"have its predictions. To look, which is counted: hoarfrost report --run {run}"
                )
            yield run


def _with_looks(run: Run, locked: Mapping[Path, Path]) -> Run:
    """Count a look at each locked test split that is evaluated, and return the evaluation with a note of it."""
    assert run.external is not None
    notes = tuple(
        f"{file} has predictions of the locked test split of {one}. This is look number "
        f"{record_look(one, f'evaluate --predictions {file}')}."
        for one, file in locked.items()
    )
    return replace(run, external=replace(run.external, notes=(*run.external.notes, *notes)))


# -- several files ------------------------------------------------------------------------------------------------------


def _models(first: PredictionTable, others: Sequence[PredictionTable]) -> Iterator[ModelColumn]:
    """Yield the models of all files, in the order of the first one's rows, each with a name of its own."""
    tables = [first, *others]
    names = [model.name for table in tables for model in table.models]
    for number, table in enumerate(tables, start=1):
        order = np.arange(len(first.ids)) if table is first else _order(first, table)
        for model in table.models:
            name = model.name if names.count(model.name) == 1 else f"{model.name} ({number})"
            yield replace(model, name=name, p=model.p[order])


def _order(first: PredictionTable, other: PredictionTable) -> "np.typing.NDArray[np.int64]":
    """Return the rows of another file in the order of the first one; refuse other rows, or other labels."""
    place = {one: i for i, one in enumerate(other.ids)}
    absent = [one for one in first.ids if one not in place]
    if absent or len(other.ids) != len(first.ids):
        n_both = len(first.ids) - len(absent)
        raise DatasetError(
            f"{other.file} does not have the rows of {first.file}: {n_both:,} are in both, {len(absent):,} in {first.file} "
            f"alone, {len(other.ids) - n_both:,} in {other.file} alone. Models are compared on the same rows: keep those."
        )
    order = np.array([place[one] for one in first.ids], np.int64)
    if first.names != other.names or first.y.shape != other.y.shape:
        raise DatasetError(
            f"{other.file} has the classes {', '.join(other.names)}, {first.file} {', '.join(first.names)}."
        )
    differ = np.flatnonzero((other.y[order] != first.y).reshape(len(order), -1).any(axis=1))
    if len(differ):
        one = first.ids[differ[0]]
        raise DatasetError(
            f"{len(differ):,} rows have another label in {other.file} than in {first.file} (first: {one}). Correct one file."
        )
    return order


def _ignored(table: PredictionTable) -> str:
    """Return which columns are predictions that are not evaluated; empty if there are none."""
    if not table.ignored:
        return ""
    names = ", ".join(table.ignored)
    if len(table.ignored) == 1:
        return f"{table.file.name}: the column {names} also holds predictions and is ignored. To evaluate it, give it a file."
    return f"{table.file.name}: the columns {names} also hold predictions and are ignored. To evaluate one, give it a file."


# -- the rows -----------------------------------------------------------------------------------------------------------


def _task(table: PredictionTable, config: PredictionsConfig) -> tuple[ScoredTask, "np.typing.NDArray[np.int64]", str]:
    """Return the rows that are scored or validated as a task, their places, and which rows are left out, in words."""
    splits = _splits(table, config.validation_split)
    rule = Rule.parse(config.operating_point, of_scores=True)
    n_present = len(np.unique(table.y[splits == "val"]))
    if rule.kind == "threshold" and table.y.ndim == 1 and n_present < len(table.names):
        splits = np.where(splits == "val", "", splits)  # of one class, they cannot fix a temperature either
    rows = np.flatnonzero(splits != "")
    dropped = ""
    if len(rows) < len(splits):
        kinds = sorted({(table.splits or [])[i] or "(none)" for i in np.flatnonzero(splits == "")})
        dropped = f"{len(splits) - len(rows):,} rows of the split {', '.join(kinds)} are left out."
    ids, labels = ([column[i] for i in rows] for column in (table.ids, table.labels))
    patients = None if table.patients is None else [table.patients[i] for i in rows]
    if config.per_patient is not None and patients is None:
        raise TrainingError(f"--per-patient {config.per_patient}: {table.file} has no column patient.")
    n = len(rows)
    numbers = None if patients is None else patient_numbers(patients)
    dataset = DatasetTable(
        name=config.name or table.file.stem, source=str(table.file), paths=Texts.of(ids), rows=np.arange(n),
        labels=Texts.of(labels), errors=Texts.repeated("", n), sizes=np.full(n, -1), mtimes_ns=np.full(n, -1),
        patients=None if patients is None else Texts.of(patients),
        attributes={name: Texts.of(cells[i] for i in rows) for name, cells in table.attributes.items()},
    )  # fmt: skip
    task = ScoredTask(
        table=dataset, readable=np.ones(n, bool), y=table.y[rows], groups=np.arange(n) if numbers is None else numbers,
        splits=splits[rows], split_by=EXTERNAL, classes=table.classes, positive=table.positive, names=table.names,
        patients=numbers, per_patient=config.per_patient, rule=rule,
    )  # fmt: skip
    return task, rows, dropped


def _splits(table: PredictionTable, validation: str) -> "np.typing.NDArray[np.str_]":
    """Return "test" for rows that are scored, "val" for those that fix thresholds, and "" for others."""
    wanted = split_of(validation) or validation
    if wanted == "test":
        raise DatasetError(f"--validation-split {validation} names the rows that are scored. Name others, or omit it.")
    named = None if table.splits is None else np.array([split_of(one) or one for one in table.splits])
    if wanted != PredictionsConfig.validation_split and (named is None or wanted not in named):
        raise DatasetError(f"--validation-split {validation}: no row of {table.file} has this split. Omit the option.")
    if named is None or table.splits is None:
        return np.full(len(table.ids), "test")
    is_validated = named == wanted
    is_scored = named == "test"
    if not is_scored.any():  # a split column without a test split: what is in no split is scored
        is_scored = (named == "") & ~is_validated
    if not is_scored.any():
        found = ", ".join(sorted(set(table.splits)))
        raise DatasetError(
            f"{table.file}: the column split has {found}, and no row to score. Write test for the rows to score, or remove "
            "the column to score them all."
        )
    return np.where(is_scored, "test", np.where(is_validated, "val", ""))


# -- scoring ------------------------------------------------------------------------------------------------------------


def _evaluated(
    output: Path, task: ScoredTask, models: Sequence[ModelColumn], config: PredictionsConfig, command: Sequence[str],
    started: float, about_files: Sequence[str],
) -> Run:  # fmt: skip
    first, probabilities = models[0], {model.name: model.p for model in models}
    is_fixed = first.kind == CALL or task.rule.kind == "threshold" or len(task.validated) > 0
    known = fixed_for(task, first, task.rule, validation=config.validation_split) if is_fixed else None
    check_classes(task, first.p, known, sample="row", scale=first.scale)
    fixed = {model.name: fixed_for(task, model, task.rule, validation=config.validation_split) for model in models}
    heads = [kept_scores(model, scored(task, bare_result(model.name), model.p, fixed[model.name])) for model in models]
    assessment = assessed(task, first.name, first.p, fixed[first.name], prevalence=config.prevalence)
    frozen, fixed_on = _words(task, first, fixed[first.name], config)
    notes = [*(model.note for model in models if model.note), *about_files, _shared_patients(task)]
    if task.patients is None:
        notes.append("Patients are unknown, so intervals treat the rows as independent.")
    model = f"the predictions of {', '.join(probabilities)}"
    external = External(
        model, frozen, "", notes=tuple(note for note in notes if note), scored="test",
        updates=updates_of(task, first.p, fixed[first.name], config.prevalence),
        scales={model.name: model.scale for model in models if model.scale is not None},
    )  # fmt: skip
    base = RunConfig(
        **vars(TrainingConfig(device="cpu")), command="", created="", seconds=0.0, head_seconds={}, streamed_bytes=None,
        dataset=dataset_facts(task), embeddings=NO_EMBEDDINGS, versions=versions_used(), machine=machine_used(),
        per_patient=config.per_patient, prevalence=config.prevalence, operating_point=config.operating_point,
        fixed_on=fixed_on,
    )  # fmt: skip
    facts = evaluation_config(base, task, NO_EMBEDDINGS, model, command, started, ())
    return evaluation_run(output, task, heads, first.name, probabilities, assessment, facts, external)


def _shared_patients(task: ScoredTask) -> str:
    """Return how many patients have both rows that fix thresholds and scored rows; empty if there are none."""
    if task.patients is None or not len(task.validated):
        return ""
    n = len(np.intersect1d(task.patients[task.validated], task.patients[task.rows_of("test")]))
    if not n:
        return ""
    whose = "1 patient has" if n == 1 else f"{n:,} patients have"
    return (
        f"{whose} rows in both splits: thresholds and temperature were fixed on rows of patients who are scored, so what "
        "depends on them is too good. Keep all rows of a patient in one split."
    )


def kept_scores(model: ModelColumn, result: HeadResult) -> HeadResult:
    """Return the scores of a model without those that only probabilities have, if its predictions are others."""
    if model.kind == PROBABILITY:
        return result

    def kept(scores: Scores) -> Scores:
        return replace(scores, estimates={k: one for k, one in scores.estimates.items() if k not in OF_PROBABILITIES})

    return replace(result, val=kept(result.val), test=None if result.test is None else kept(result.test))


def _words(task: ScoredTask, model: ModelColumn, fixed: Fixed, config: PredictionsConfig) -> tuple[str, str]:
    """Return how the thresholds of the first model were fixed: as sentences, and as what follows "chosen on"."""
    n, is_calibrated = len(task.validated), model.kind == PROBABILITY
    if model.kind == CALL:
        return "The calls are as they are given.", AS_CALLED
    if n:
        rows = f"the {n:,} rows of the split {config.validation_split}"
        what = "Thresholds and temperature" if is_calibrated else "Thresholds"
        return f"{what} were fixed on {rows}, and applied to the others.", rows
    unfitted = "Probabilities are as they are given: there are no validated rows to fit a temperature on."
    unfitted = unfitted if is_calibrated else "Scores are as they are given."
    if task.rule.kind == "threshold":
        return f"The threshold {task.rule.level:g} was stated. {unfitted}", STATED
    assert fixed.folds is not None
    n_folds, by = int(fixed.folds.max()) + 1, "row" if task.patients is None else "patient"
    how = (
        f"Thresholds were cross-fitted in {n_folds} folds by {by}: each row is judged by a threshold that the other folds "
        "chose. The thresholds of all folds are shown as their range."
    )
    return f"{how} {unfitted}", f"the scored rows themselves (cross-fitted in {n_folds} folds)"
