"""Many heads, variants by seeds by folds, trained in one call."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from hoarfrost.features.devices import enough_memory
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.config import TrainingConfig
from hoarfrost.heads.kinds import HeadSpec, Penalised
from hoarfrost.heads.specs import count_parameters
from hoarfrost.training.batches import Group
from hoarfrost.training.jobs import Found, Job, OnEpoch, finished
from hoarfrost.training.looks import look_rows
from hoarfrost.training.objective import objective_for
from hoarfrost.training.penalised import fit_penalised
from hoarfrost.training.records import Fold, Labelled, Material, TrainedHead
from hoarfrost.training.rows import StreamedRows, fitted_standardise, transformed_rows
from hoarfrost.training.stack_run import RocAucs, StackRun

SMALL_FIT = 5_000  # training rows; a penalised head of more is fitted on all cores
# Parameters; AdamW needs four times that. Measured with two stacks side by side on two cores: with half a million, the
# time between products is a fifth of all; beyond two million nothing is gained, and few heads make one stack for one core.
LARGEST_STACK = {"cpu": 2_000_000, "cuda": 32_000_000}


T = TypeVar("T")


def train_heads(
    specs: Sequence[HeadSpec],
    data: Labelled,
    folds: Sequence[Fold],
    n_classes: int,
    config: TrainingConfig,
    roc_aucs: RocAucs,
    on_epoch: OnEpoch = lambda *_: None,
    *,
    n_seeds: Mapping[HeadSpec, int] | None = None,
) -> list[TrainedHead]:
    """Train every variant with its seeds on every fold, those of one architecture together.

    Parameters
    ----------
    specs : sequence of HeadSpec
        Of penalised kinds those with a number for C, as `HeadSpec.candidates` returns them. They are fitted once per
        fold, for there is nothing random about them.
    roc_aucs : callable
        From class numbers (n,) and probabilities (V, n, C) to V validation ROC AUCs of an epoch.
    on_epoch : callable
        Takes the architecture and the epoch's number after each epoch; 0 after each fold of a penalised kind.
    n_seeds : mapping of HeadSpec to int, optional
        Number of seeds of each variant, counted from `config.seed`; by default `config.seeds`.

    Returns
    -------
    list of TrainedHead
        By spec, seed and fold, in this order. Heads whose loss became NaN or infinite are omitted.

    Raises
    ------
    TrainingError
        If all heads fail in this way.
    """
    seeds = {spec: 1 if isinstance(spec, Penalised) else (n_seeds or {}).get(spec, config.seeds or 1) for spec in specs}
    jobs = list(_Trainer(data, folds, n_classes, config, roc_aucs).jobs(seeds))
    rows = data.looks.rows
    with enough_memory(rows.device, "the heads"):
        found = finished(jobs, on_epoch, one_by_one=isinstance(rows, StreamedRows) or rows.device.type != "cpu")
    rows.release()
    trained = [head for head in found if isinstance(head, TrainedHead)]
    if not trained:
        raise next(error for error in found if isinstance(error, TrainingError))
    order = {spec: i for i, spec in enumerate(specs)}
    return sorted(trained, key=lambda head: (order[head.spec], head.seed, head.fold))


@dataclass(frozen=True)
class _Trainer:
    """What all jobs of a training share."""

    data: Labelled
    folds: Sequence[Fold]
    n_classes: int
    config: TrainingConfig
    roc_aucs: RocAucs

    def jobs(self, seeds: Mapping[HeadSpec, int]) -> Iterator[Job]:
        """Yield what can be trained independently: stacks of heads, and penalised heads of one fold."""
        alike: dict[tuple[Hashable, int], list[HeadSpec]] = defaultdict(list)
        for spec, n in seeds.items():
            alike[spec.stack_key, n].append(spec)
        materials: dict[Hashable, Material] = {}
        for (_, n), specs in alike.items():
            needs = (specs[0].transform, specs[0].views, specs[0].layers, specs[0].AVERAGES_VIEWS)
            if needs not in materials:
                materials[needs] = self._material(specs[0])
            material = materials[needs]
            penalised = [spec for spec in specs if isinstance(spec, Penalised)]
            if penalised:
                yield from (self._fit(penalised, material, fold) for fold in range(len(self.folds)))
            else:
                yield from self._stacks(specs, material, range(self.config.seed, self.config.seed + n))

    def _material(self, spec: HeadSpec) -> Material:
        looks = self.data.looks
        chosen, n_looks = looks.of(spec)
        x, columns = transformed_rows(chosen, spec.transform), looks.columns(spec.layer_numbers)
        rows = [look_rows(fold.train, n_looks) for fold in self.folds]
        standardise = [fitted_standardise(x, of_fold, spec.transform, columns) for of_fold in rows]
        objective = objective_for(self.data.y, self.n_classes)
        return Material(x, self.data.y, self.folds, standardise, objective, n_looks)

    def _fit(self, specs: Sequence[Penalised], material: Material, fold: int) -> Job:
        def run(on_epoch: OnEpoch) -> Found:
            found = fit_penalised(specs, material, fold, self.config)
            on_epoch(specs[0].shape, 0)
            return found

        return Job(run, len(self.folds[fold].train) <= SMALL_FIT)

    def _stacks(self, specs: Sequence[HeadSpec], material: Material, seeds: Sequence[int]) -> Iterator[Job]:
        """Yield variants of one architecture with their groups, as many as the largest stack may have."""
        groups = [Group(seed, fold) for seed in seeds for fold in range(len(self.folds))]
        with torch.device("meta"):
            n_parameters = max(1, count_parameters(specs[0].build(material.x.n_features, self.n_classes)))
        n_heads = max(1, LARGEST_STACK[material.x.device.type] // n_parameters)
        for of_groups in _evenly(groups, n_heads):
            for some in _evenly(specs, max(1, n_heads // len(of_groups))):
                yield Job(partial(self._train, some, of_groups, material), n_parameters <= LARGEST_STACK["cpu"])

    def _train(
        self, specs: Sequence[HeadSpec], groups: Sequence[Group], material: Material, on_epoch: OnEpoch
    ) -> Found:
        return StackRun(specs, groups, material, self.config, self.roc_aucs).train(on_epoch)


def _evenly(values: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """Yield parts of at most so many values, as even as possible."""
    n_parts = -(-len(values) // most)
    for part in np.array_split(np.arange(len(values)), n_parts):
        yield values[part[0] : part[-1] + 1]
