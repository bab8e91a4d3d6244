"""The split that a report is about, what is counted in it, and the names of its classes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hoarfrost.evaluation import Estimate, Metric, Scores
from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.evaluation.units import patient_numbers, units_of
from hoarfrost.report.words import of_patients, rule, several, threshold_text
from hoarfrost.runs import DatasetFacts, HeadResult, ReferenceResult, Run
from hoarfrost.runs.external import Scale

if TYPE_CHECKING:
    import numpy.typing as npt

SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}
"""The names of splits in words. With cross-fitting the images of "val" are the training images, predicted out of fold."""


@dataclass(frozen=True)
class Evaluation:
    """What the report is about: the test split, or without one the images that were validated.

    `split_name` is the split in words: "test", "validation", "out-of-fold" for training images with cross-fitting, or
    "external" for a cohort.
    `y_true` is (n,) int64, or (n, C) where an image may have several labels; `probabilities[head]` is (n, C) float64.
    `unit` is what is counted: "image", "row" of predictions without images, or "patient" where metrics join their images.
    `patients` is (n,) int64 where images or rows are counted and their patients are known. `scales` are those of models
    whose predictions are scores.
    """

    split: str
    split_name: str
    classes: tuple[str, ...]
    y_true: "npt.NDArray[np.int64]"
    probabilities: "Mapping[str, npt.NDArray[np.float64]]"
    unit: str = "image"
    patients: "npt.NDArray[np.int64] | None" = None
    scales: Mapping[str, Scale] = field(default_factory=dict)

    @property
    def is_binary(self) -> bool:
        """Whether there is one positive class, and so one ROC curve per head."""
        return len(self.classes) == 2 and not self.is_multilabel

    @property
    def is_multilabel(self) -> bool:
        """Whether an image may have several labels."""
        return self.y_true.ndim == 2

    @property
    def n_patients(self) -> int | None:
        """The number of patients, where images are counted and their patients are known."""
        return None if self.patients is None else len(np.unique(self.patients))

    def samples(self) -> str:
        """Return what is counted, with its number: "156 test images of 60 patients"."""
        return several(len(self.y_true), f"{self.split_name} {self.unit}") + self.of_patients()

    def of_patients(self, y: int | None = None) -> str:
        """Return the number of patients, of all images or of those of one class: " of 14 patients"; "" if unknown."""
        if self.patients is None:
            return ""
        return of_patients(len(np.unique(self.patients if y is None else self.patients[self.y_true == y])))

    def scores(self, head: HeadResult | ReferenceResult) -> Scores:
        """Return a head's metrics on this split."""
        return head.val if head.test is None else head.test

    def area(self, head: HeadResult | ReferenceResult) -> Estimate:
        """Return a head's ROC AUC on this split, with the interval that is printed."""
        scores = self.scores(head)
        return scores.printed(ROC_AUC) or scores.auc

    def decided_by(self, head: HeadResult | ReferenceResult) -> str:
        """Return the rule by which a head's accuracy and other metrics of decisions decide."""
        scores = self.scores(head)
        name = rule(scores.rule)
        if len(scores.thresholds) == 1:
            at = threshold_text(scores.thresholds[0], self.scales.get(head.name))
            return f"at threshold \N{GREATER-THAN OR EQUAL TO} {at} ({name})"
        if scores.rule:
            return f"at each label's threshold ({name})" if self.is_multilabel else f"by {name}"
        return "at a probability of 0.5" if self.is_binary or self.is_multilabel else "the most probable class"

    def title_of(self, metric: Metric) -> str:
        """Return a metric's title, and if it is a mean over classes or labels, that it is."""
        if self.is_binary or not metric.is_mean:
            return metric.title
        return f"{metric.title}, {'mean over labels' if self.is_multilabel else 'macro one-vs-rest'}"


def evaluation_of(run: Run, *, by_image: bool = False) -> Evaluation:
    """Select the samples that a report is about.

    Parameters
    ----------
    run : Run
    by_image : bool
        Count images, even if metrics count patients.

    Returns
    -------
    Evaluation
        Of the test split, or of the validation split if the heads do not have test metrics.
    """
    split = "val" if run.head(run.selected).test is None else "test"
    rows = run.rows_of(split)
    classes, how = class_names(run.config.dataset), None if by_image else run.config.per_patient
    is_known = run.config.dataset.n_patients is not None
    patients = patient_numbers([run.predictions.patients[i] for i in rows]) if is_known else None
    units = units_of(run.y_true()[rows], len(classes), patients, how)
    probabilities = {head: units.joined(scores[rows]) for head, scores in run.predictions.probabilities.items()}
    unit = run.config.sample if units.how is None else "patient"
    split_name, scales = run.config.validation if split == "val" else SPLIT_NAMES[split], {}
    if run.external is not None:
        split_name, scales = run.external.scored, run.external.scales
    return Evaluation(split, split_name, classes, units.y, probabilities, unit, units.groups, scales)


def class_names(dataset: DatasetFacts) -> tuple[str, ...]:
    """Return the names of the classes that heads predict, in the order of their numbers.

    With `--positive`, a class may consist of several labels: "benign + normal".
    """
    if dataset.positive is None:
        return dataset.classes
    negative = [label for label in dataset.classes if label not in dataset.positive]
    return " + ".join(negative), " + ".join(dataset.positive)
