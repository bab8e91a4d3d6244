"""The heads of a run: their scores, and whether their files can be used."""

from dataclasses import dataclass
from pathlib import Path

from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.features.errors import RunError
from hoarfrost.heads.files import read_head
from hoarfrost.runs import HeadResult, RunHeads, read_heads


@dataclass(frozen=True)
class ListedHead:
    """A head of a run.

    `parameters` are those of one seed; `test_roc_auc` is None without a test split; `problem` is the reason why the file
    cannot be used, empty if it can.
    """

    name: str
    selected: bool
    seeds: int
    parameters: int
    val_roc_auc: float
    test_roc_auc: float | None
    file: str
    bytes: int
    problem: str


def list_heads(directory: Path) -> tuple[ListedHead, ...]:
    """Return a run's heads; each head file is read.

    Raises
    ------
    RunError
        If the folder is missing, is not a run, was written by another version or is damaged.
    """
    run = read_heads(directory)
    return tuple(_listed(run, head) for head in run.heads)


def _listed(run: RunHeads, head: HeadResult) -> ListedHead:
    path, problem = run.file_of(head.name), ""
    try:
        read_head(path)
    except RunError as error:
        problem = str(error)
    return ListedHead(
        name=head.name,
        selected=head.name == run.selected,
        seeds=len(head.seeds),
        parameters=head.n_parameters,
        val_roc_auc=head.val.value(ROC_AUC),
        test_roc_auc=None if head.test is None else head.test.value(ROC_AUC),
        file=str(path),
        bytes=path.stat().st_size if path.is_file() else 0,
        problem=problem,
    )
