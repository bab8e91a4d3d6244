"""What a run was scored on, rebuilt from its folder and its cache; and what its heads predict there."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from hoarfrost.evaluation.checks import Bools, Floats, Ints
from hoarfrost.evaluation.operating import Rule
from hoarfrost.evaluation.units import patient_numbers
from hoarfrost.experiment.classes import class_names
from hoarfrost.experiment.results import common_spec
from hoarfrost.experiment.scored import ScoredTask
from hoarfrost.experiment.splits import merged_groups
from hoarfrost.experiment.variants import MEAN
from hoarfrost.features.cache import DatasetTable
from hoarfrost.features.columns.texts import Texts
from hoarfrost.heads.committee import Committee
from hoarfrost.heads.files import SavedHead, SavedMember
from hoarfrost.heads.specs import count_parameters, parse_head
from hoarfrost.heads.views import member_views
from hoarfrost.inference.sources import RunSource
from hoarfrost.runs import HeadResult, Run

_AT_ONCE = 4_096  # embeddings


def task_of(run: Run, source: RunSource | None) -> ScoredTask:
    """Return what the metrics of a run are of. Without the cache there are no further columns but those in the run."""
    dataset, predictions, n = run.config.dataset, run.predictions, len(run.predictions.paths)
    patients = None if dataset.n_patients is None else list(predictions.patients)
    attributes = run.attributes if source is None else source.attributes(predictions.paths)
    numbers = None if patients is None else patient_numbers(patients)
    names = dataset.classes if dataset.is_multilabel else class_names(dataset.classes, dataset.positive)
    table = DatasetTable(
        name=dataset.name, source=dataset.source, paths=Texts.of(predictions.paths), rows=np.arange(n),
        labels=Texts.of(predictions.labels), errors=Texts.repeated("", n), sizes=np.full(n, -1),
        mtimes_ns=np.full(n, -1), patients=None if patients is None else Texts.of(patients),
        attributes={name: Texts.of(cells) for name, cells in attributes.items()},
    )  # fmt: skip
    return ScoredTask(
        table=table, readable=np.ones(n, bool), y=run.y_true(),
        groups=np.arange(n) if numbers is None else merged_groups(numbers), splits=np.array(predictions.splits),
        split_by=dataset.split_by, classes=dataset.classes, positive=dataset.positive, names=names, patients=numbers,
        per_patient=run.config.per_patient,
        is_cross_fitted=run.config.n_cross_fit is not None and not run.config.evaluates,
        rule=Rule.parse(run.config.operating_point, of_scores=True),
    )  # fmt: skip


def predicted_again(run: Run, head: SavedHead, source: RunSource) -> Floats:
    """Return what a head predicts for all images of a run, (n, C) float64, from the embeddings in the cache.

    Images that were predicted out of fold get the prediction by the members of one fold: of that fold whose prediction is
    closest to the recorded one, because the folds themselves are not recorded.
    """
    recorded, n = run.predictions.probabilities[head.name], len(run.predictions.paths)
    out_of_fold = np.zeros(n, bool)
    if run.config.n_cross_fit is not None and not run.config.evaluates:
        out_of_fold = np.array(run.predictions.splits) == "train"
    found = np.full_like(recorded, np.nan)
    for rows in np.array_split(np.arange(n), max(1, n // _AT_ONCE)):
        x = _embeddings(source, [run.predictions.paths[i] for i in rows], head.views)
        found[rows] = _blocks(head, x, recorded[rows], out_of_fold[rows])
    return found


def of_file(result: HeadResult, head: SavedHead) -> HeadResult:
    """Return a head's result with what its file determines: its size, its settings, and the weights of a mean."""
    found = replace(
        result,
        n_parameters=sum(count_parameters(one.module) for one in head.members),
        n_members=len(head.members),
    )
    if result.name == MEAN:
        of_kind = {one.spec.KIND: 0.0 for one in head.members}
        for one in head.members:
            of_kind[one.spec.KIND] += one.weight
        return replace(found, shares={name: of_kind.get(parse_head(name).KIND, 0.0) for name in result.shares})
    spec = common_spec(tuple(dict.fromkeys(one.spec for one in head.members)), parse_head(result.name))
    values = spec.values()
    return replace(
        found,
        learning_rate=values.get("lr"),
        weight_decay=values.get("weight_decay"),
        dropout=values.get("dropout"),
        trained_as="" if spec.name == result.name else spec.name,
    )


def _embeddings(source: RunSource, paths: Sequence[str], views: Sequence[str]) -> torch.Tensor:
    """Return the embeddings of some images: (n, D), or (n, V, D) of several views."""
    rows = source.cache.view_rows(source.table.rows[[source.place[path] for path in paths]], tuple(views))
    x = torch.from_numpy(source.cache.embeddings(rows.ravel())).reshape(len(paths), len(views), -1)
    return x[:, 0] if len(views) == 1 else x


def _blocks(head: SavedHead, x: torch.Tensor, recorded: Floats, out_of_fold: Bools) -> Floats:
    found = np.full_like(recorded, np.nan)
    if not out_of_fold.all():
        found[~out_of_fold] = head.committee.exact().probabilities(x[torch.from_numpy(~out_of_fold)])
    rows: Ints = np.flatnonzero(out_of_fold)
    if len(rows):
        each = np.stack([one.probabilities(x[torch.from_numpy(rows)]) for one in _of_folds(head)])  # (K, m, C)
        closest = np.abs(each - recorded[rows]).max(axis=2).argmin(axis=0)
        found[rows] = each[closest, np.arange(len(rows))]
    return found


def _of_folds(head: SavedHead) -> Iterator[Committee]:
    """Yield the committee of each fold's members, with weights that have the sum one."""
    for fold in sorted({member.fold for member in head.members}):
        own: list[SavedMember] = [member for member in head.members if member.fold == fold]
        total = sum(member.weight for member in own)
        yield Committee(
            [member.module for member in own],
            [member.weight / total for member in own],
            is_multilabel=head.is_multilabel,
            views=[member_views(member.spec, head.views) for member in own],
        ).exact()
