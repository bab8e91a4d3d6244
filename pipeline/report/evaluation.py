"""The split that a report judges the heads on, what it counts there, and what its classes are called."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hoarfrost.evaluation import Metric, Scores
from hoarfrost.evaluation.units import patient_numbers, units_of
from hoarfrost.runs import DatasetFacts, HeadResult, ReferenceResult, Run

if TYPE_CHECKING:
    import numpy.typing as npt

SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Evaluation:
    """What the figures are about: the test split, or the validation split where there is no test split.

    `y_true` is (n,) int64, or (n, C) where an image may have several labels; `probabilities[head]` is (n, C) float64.
    `unit` is what is counted: "image", or "patient" where metrics join their images.
    """

    split: str
    classes: tuple[str, ...]
    y_true: "npt.NDArray[np.int64]"
    probabilities: "Mapping[str, npt.NDArray[np.float64]]"
    unit: str = "image"

    @property
    def is_binary(self) -> bool:
        """Tell whether there is one positive class, and so one ROC curve a head."""
        return len(self.classes) == 2 and not self.is_multilabel

    @property
    def is_multilabel(self) -> bool:
        """Tell whether an image may have several labels."""
        return self.y_true.ndim == 2

    @property
    def split_name(self) -> str:
        """The split's name in words."""
        return SPLIT_NAMES[self.split]

    def samples(self) -> str:
        """Name what is counted, with its number: "156 test images"."""
        return f"{len(self.y_true):,} {self.split_name} {self.unit}{'' if len(self.y_true) == 1 else 's'}"

    def scores(self, head: HeadResult | ReferenceResult) -> Scores:
        """Return a head's metrics on this split."""
        return head.val if head.test is None else head.test

    def title_of(self, metric: Metric) -> str:
        """Return a metric's title, with how classes or labels are joined where it is a mean over them."""
        if self.is_binary or not metric.is_mean:
            return metric.title
        return f"{metric.title}, {'mean over labels' if self.is_multilabel else 'macro one-vs-rest'}"


def evaluation_of(run: Run, *, by_image: bool = False) -> Evaluation:
    """Pick the samples that the report's figures are about.

    Parameters
    ----------
    run : Run
    by_image : bool
        Count images, also where metrics count patients.

    Returns
    -------
    Evaluation
        Of the test split, or of the validation split where the heads have no test metrics.
    """
    split = "val" if run.head(run.selected).test is None else "test"
    rows = np.flatnonzero(np.array(run.predictions.splits) == split)
    classes, how = class_names(run.config.dataset), None if by_image else run.config.per_patient
    patients = None if how is None else patient_numbers([run.predictions.patients[i] for i in rows])
    units = units_of(run.y_true()[rows], len(classes), patients, how)
    probabilities = {head: units.joined(scores[rows]) for head, scores in run.predictions.probabilities.items()}
    return Evaluation(split, classes, units.y, probabilities, "image" if how is None else "patient")


def class_names(dataset: DatasetFacts) -> tuple[str, ...]:
    """Name the classes that the heads tell apart, in the order of their numbers.

    With `--positive`, several labels can make up a class: "benign + normal".
    """
    if dataset.positive is None:
        return dataset.classes
    negative = [label for label in dataset.classes if label not in dataset.positive]
    return " + ".join(negative), " + ".join(dataset.positive)
