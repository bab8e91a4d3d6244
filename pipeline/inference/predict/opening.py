"""The heads that `train` wrote, opened from a run or a head file, or listed."""

from dataclasses import dataclass, replace
from pathlib import Path

from hoarfrost.evaluation.conformal import COVERAGE
from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.features.errors import RunError, TrainingError
from hoarfrost.heads.files import SavedHead, read_head
from hoarfrost.heads.specs import parse_head
from hoarfrost.inference.predict.predictor import FALSE_ALARMS, Predictor
from hoarfrost.runs import HeadResult, RunHeads, check_digest, read_heads, record_look


def open_predictor(
    source: Path, head: str | None = None, *, coverage: float = COVERAGE, false_alarms: float = FALSE_ALARMS,
    at: str | None = None, prevalence: float | None = None,
) -> Predictor:  # fmt: skip
    """Open a head of a run, by default the selected one, or a head file; for the other options see `Predictor`.

    Raises
    ------
    RunError
        If the source is neither, is damaged or of another version, or the run has no such head.
    """
    saved = run_head(read_heads(source), head) if source.is_dir() else read_head(source)
    return Predictor(saved, coverage=coverage, false_alarms=false_alarms, at=at, prevalence=prevalence)


def run_head(run: RunHeads, name: str | None = None) -> SavedHead:
    """Read one of a run's heads, by default the selected one, with the place where the run found its weights."""
    path = run.file_of(run.selected if name is None else _full_name(run, name))
    check_digest(run.directory, path)
    saved, facts = read_head(path), run.config.embeddings
    if saved.header.fingerprint.digest != facts.fingerprint:
        raise RunError(
            f"{path} belongs to another run: the head was trained on embeddings with another fingerprint than those of "
            f"{run.directory}. Restore the run's own file, or train again."
        )
    return replace(saved, header=replace(saved.header, weights_path=facts.weights_path))


def _full_name(run: RunHeads, name: str) -> str:
    """Return the name of a head by its specification, in any spelling."""
    names = [head.name for head in run.heads]
    try:
        found = name if name in names else parse_head(name).name
    except TrainingError:
        found = name
    if found not in names:
        raise RunError(f"--head {name}: {run.directory} has no such head. Its heads: {', '.join(names)}.")
    return found


@dataclass(frozen=True)
class ListedHead:
    """A head of a run.

    `members` counts the trainings in its file, of all kinds, folds and seeds; it is 0 if the file cannot be used.
    `parameters` are those of one member; `test_roc_auc` is None without a test split; `problem` is the reason why the file
    cannot be used, empty if it can.
    """

    name: str
    selected: bool
    seeds: int
    members: int
    parameters: int
    val_roc_auc: float
    test_roc_auc: float | None
    file: str
    bytes: int
    problem: str


def list_heads(directory: Path) -> tuple[ListedHead, ...]:
    """Return a run's heads; each head file is read. Raise RunError if the folder is not a run that can be read."""
    run = read_heads(directory)
    if record_look(directory, "heads") is not None:
        run = read_heads(directory)
    return tuple(_listed(run, head) for head in run.heads)


def _listed(run: RunHeads, head: HeadResult) -> ListedHead:
    path, problem, n_members = run.file_of(head.name), "", 0
    try:
        check_digest(run.directory, path)
        n_members = len(read_head(path).members)
    except RunError as error:
        problem = str(error)
    return ListedHead(
        name=head.name,
        selected=head.name == run.selected,
        seeds=len(head.seeds),
        members=n_members,
        parameters=head.n_parameters,
        val_roc_auc=head.val.value(ROC_AUC),
        test_roc_auc=None if head.test is None else head.test.value(ROC_AUC),
        file=str(path),
        bytes=path.stat().st_size if path.is_file() else 0,
        problem=problem,
    )
