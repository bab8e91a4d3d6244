"""The records of a run: configuration, scores, training curves, predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hoarfrost.evaluation import Comparison, Scores
from hoarfrost.evaluation.cohort import Cohort
from hoarfrost.evaluation.estimates import Estimate
from hoarfrost.evaluation.leakage import Leakage
from hoarfrost.evaluation.shortcuts import AttributeAudit
from hoarfrost.evaluation.units import patient_numbers
from hoarfrost.heads.config import ScoringConfig, TrainingConfig
from hoarfrost.runs.acquisition import Acquisition
from hoarfrost.runs.covariates import Covariates
from hoarfrost.runs.embeddings import EmbeddingFacts
from hoarfrost.runs.external import External, Scale
from hoarfrost.runs.left_out import LeftOut
from hoarfrost.runs.lock import AnalysisPlan, Look
from hoarfrost.runs.resampled import CrossValidation, LearningPoint, RepeatedSplits
from hoarfrost.runs.trust import Assessment, Suspects

if TYPE_CHECKING:
    import numpy.typing as npt

SPLITS = ("train", "val", "test")
STATED, AS_CALLED = "no data, but stated", "no data: the calls themselves"
"""Values of `fixed_on` where no data chose the thresholds."""
NO_TEST_SPLIT = "There is no test split: all scores are of the images that also chose the head."


@dataclass(frozen=True)
class UnreadableImage:
    """An image that has no embedding, and why."""

    path: str
    error: str


@dataclass(frozen=True)
class DatasetFacts:
    """The dataset that the heads were trained and scored on.

    `positive` names the labels that count as class 1 (None with more than two classes).
    `n_images` includes the unreadable ones. `split_by` names the rule of the splits, see
    `hoarfrost.experiment.splits.SPLIT_RULES`. `counts` maps split -> label -> number of images with an embedding,
    `n_split` split -> number of images. With several labels per image (`is_multilabel`) the latter is not the sum, and
    `classes` names the labels. `no_test_split` states that there is no test split, `patients_hint` that patients are
    unknown although the paths suggest some. `cohort` describes the images; None in runs of earlier versions.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    positive: tuple[str, ...] | None
    split_by: str
    n_images: int
    n_patients: int | None
    counts: dict[str, dict[str, int]]
    n_split: dict[str, int]
    unreadable: tuple[UnreadableImage, ...]
    is_multilabel: bool = False
    no_test_split: str | None = None
    patients_hint: str = ""
    cohort: Cohort | None = None


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `train` was asked for, as far as nothing else in the configuration states it: what `replay` trains again by.

    The fields are those of `hoarfrost.experiment.experiment.ExperimentConfig`; `heads` are specifications.
    """

    heads: tuple[str, ...]
    label_columns: tuple[str, ...] | None = None
    cross_fit: bool | None = None
    n_folds: int | None = None
    n_repeats: int | None = None
    leave_out: str | None = None
    suspects_in_test: bool = False
    with_learning_curve: bool = False
    near_duplicates: str = "group"
    views: str = "auto"
    splits_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainingConfig, ScoringConfig):
    """The configuration of a run, saved beside its results. Times are here, because the scores do not change.

    `head_seconds` maps each head's name to its share of the training time, all seeds together. `streamed_bytes` is the
    memory limit if embeddings were streamed, which decides the order of batches; else None. `warnings` are what a reader
    must know before trusting the scores. `n_cross_fit` is the number of folds of cross-fitting, None where there was a
    validation split. `select` is how the head was selected: "mean" or "best", by out-of-fold or validation loss; "auc" in
    runs of earlier versions, by validation ROC AUC. `evaluates` names what `hoarfrost evaluate` scored, and
    `fixed_on` what thresholds were chosen on, if not on the run's own validation; both are empty for what `train` wrote.
    `plan` was fixed before training if the test split is locked. `options` are None in runs of earlier versions.
    """

    command: str
    created: str
    seconds: float
    head_seconds: dict[str, float]
    streamed_bytes: int | None
    dataset: DatasetFacts
    embeddings: EmbeddingFacts
    versions: dict[str, str]
    machine: str
    warnings: tuple[str, ...] = ()
    n_cross_fit: int | None = None
    select: str = "auc"
    evaluates: str = ""
    fixed_on: str = ""
    plan: AnalysisPlan | None = None
    options: TrainOptions | None = None

    @property
    def sample(self) -> str:
        """What is scored: "image", or "row" where only predictions are known."""
        return "image" if self.embeddings.fingerprint else "row"

    @property
    def validation(self) -> str:
        """How heads were validated, as an adjective: "out-of-fold" or "validation"."""
        return "validation" if self.n_cross_fit is None else "out-of-fold"

    @property
    def validated_on(self) -> str:
        """What selection, thresholds and temperature were based on: follows "chosen on"."""
        return self.fixed_on or ("the validation split" if self.n_cross_fit is None else "out-of-fold predictions")

    @property
    def thresholds(self) -> str:
        """Where thresholds are from, as a participle: "chosen on the validation split"."""
        return {STATED: "stated", AS_CALLED: "given by the calls"}.get(self.fixed_on, f"chosen on {self.validated_on}")

    @property
    def selection(self) -> str:
        """How the head was selected: follows "selected"."""
        if self.select == "auc":
            return "by the highest validation ROC AUC"
        return f"by {'the lowest ' if self.select == 'best' else ''}{self.validation} loss"


@dataclass(frozen=True)
class SeedResult:
    """One training of a head: its own ROC AUCs; without a test split, `test_roc_auc` = None."""

    seed: int
    val_roc_auc: float
    test_roc_auc: float | None
    best_epoch: int
    epochs: int


@dataclass(frozen=True)
class HeadResult:
    """One head's scores; `test` = None if the dataset has no test split.

    `val` are the scores of validated images: of the validation split, or out of fold. All scores are those of the mean of
    the members' probabilities; `n_members` counts them, and `n_parameters` is that of all. `best_epoch` and `epochs` are
    the first member's, 0 for heads that are fitted to convergence; these have no `learning_rate` and `weight_decay`.
    `trained_as` is the specification that was chosen where `name` leaves it open, as "logistic,C=0.01". `shares` are the
    weights of the heads that "mean" is made of. `weights_file` has all members. `alarms` are the head's problems.
    """

    name: str
    n_parameters: int
    learning_rate: float | None
    weight_decay: float | None
    dropout: float | None
    best_epoch: int
    epochs: int
    weights_file: str
    val: Scores
    test: Scores | None
    seeds: tuple[SeedResult, ...]
    alarms: tuple[str, ...] = ()
    n_members: int = 1
    trained_as: str = ""
    shares: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ReferenceResult:
    """The scores of a classifier that heads are compared with; never selected. It was fitted on `n_train` images.

    `setting` is what was chosen for it out of fold, as "C = 0.01".
    """

    name: str
    n_train: int
    val: Scores
    test: Scores | None
    setting: str = ""


@dataclass(frozen=True)
class ViewsResult:
    """The head that a set of views selects: its ROC AUC and log loss (nats).

    `work` is that of the encoder, in looks at its own size. `difference` is the ROC AUC minus that of the smallest set, on
    the same images; None for that set. `n_chosen` counts how often the set was chosen by out-of-fold loss.
    """

    views: tuple[str, ...]
    work: float
    roc_auc: float
    loss: float
    difference: Estimate | None
    n_chosen: int


@dataclass(frozen=True)
class ComparedViews:
    """What more looks gave: the sets of views side by side.

    `basis` is "folds" (nested cross-validation, with `n_choices` folds), "test", or "val" (what selected them).
    """

    basis: str
    n_choices: int
    results: tuple[ViewsResult, ...]


@dataclass(frozen=True)
class Epoch:
    """One line of a head's training curve."""

    head: str
    seed: int
    epoch: int
    train_loss: float
    val_loss: float
    val_roc_auc: float
    learning_rate: float


@dataclass(frozen=True)
class Predictions:
    """Every image's probabilities: one row per image, in the dataset's order.

    `probabilities[head]` is (n, C) float64, columns in the order of the classes; rows sum to one, unless an image may
    have several labels. `labels` are the dataset's own (before `--positive` made them binary), or all that an image has,
    "a|b"; then `truth` is (n, C) int64 of 1, 0 and -1 (unknown).
    """

    paths: tuple[str, ...]
    patients: tuple[str, ...]
    splits: tuple[str, ...]
    labels: tuple[str, ...]
    probabilities: "Mapping[str, npt.NDArray[np.float64]]"
    truth: "npt.NDArray[np.int64] | None" = None

    @cached_property
    def patient_numbers(self) -> "npt.NDArray[np.int64]":
        """Each image's patient number, see `hoarfrost.evaluation.units.patient_numbers`."""
        return patient_numbers(self.patients)


@dataclass(frozen=True)
class OutOfFold:
    """The predictions of cross-validation for each image, by heads that never saw it, in the order of `Predictions`.

    `folds` numbers the fold that held the image out, -1 if none did; then `probabilities[name]`, (n, C) float64, is NaN.
    """

    folds: tuple[int, ...]
    probabilities: "Mapping[str, npt.NDArray[np.float64]]"


@dataclass(frozen=True)
class SplitSize:
    """The size of one split, or of "all": images with an embedding, and patients if they are known.

    `counts` and `patients` are those of each label. A patient counts for each label that an image of theirs has.
    """

    split: str
    n_images: int
    n_patients: int | None
    counts: dict[str, int]
    patients: dict[str, int] | None


@dataclass(frozen=True)
class Run:
    """The content of one run folder.

    `comparisons` compare the other heads and the references with the selected head, on the split of `assessment`.
    Every run that `train` wrote has `leakage`, `assessment` and `suspects`. What `evaluate` wrote has `external`; its
    cohort is the split "test", and `val` of a head has no scores where these are not known. `repeated`, (R, n, C)
    float64, are the probabilities of repeated splits, in the order of `predictions`; NaN for what a split's heads
    learned from. `by_site` are those of `left_out`; its folds are the numbers of sites.
    `looks` are those at a locked test split. `attributes` are the further columns of an evaluation whose cache was not kept,
    in the order of `predictions`; empty in those of earlier versions.
    """

    directory: Path
    config: RunConfig
    selected: str
    heads: tuple[HeadResult, ...]
    references: tuple[ReferenceResult, ...]
    cross_validation: CrossValidation | None
    learning_curve: tuple[LearningPoint, ...]
    history: tuple[Epoch, ...]
    predictions: Predictions
    out_of_fold: OutOfFold | None = None
    leakage: Leakage | None = None
    comparisons: tuple[Comparison, ...] = ()
    assessment: Assessment | None = None
    shortcuts: tuple[AttributeAudit, ...] = ()
    suspects: Suspects | None = None
    views: ComparedViews | None = None
    repeats: RepeatedSplits | None = None
    repeated: "npt.NDArray[np.float64] | None" = None
    external: External | None = None
    acquisition: Acquisition | None = None
    left_out: LeftOut | None = None
    by_site: OutOfFold | None = None
    looks: tuple[Look, ...] = ()
    covariates: Covariates | None = None
    attributes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def split_sizes(self) -> tuple[SplitSize, ...]:
        """Count the images and patients of each split, and of all."""
        dataset, splits = self.config.dataset, np.array(self.predictions.splits)
        found = []
        for split in (name for name in SPLITS if name in dataset.n_split):
            n_patients, patients = self._patients(splits == split)
            found.append(SplitSize(split, dataset.n_split[split], n_patients, dataset.counts[split], patients))
        sums = {label: sum(size.counts.get(label, 0) for size in found) for label in dataset.classes}
        _, patients = self._patients(splits != "")
        return *found, SplitSize("all", sum(size.n_images for size in found), dataset.n_patients, sums, patients)

    def _patients(self, rows: "npt.NDArray[np.bool_]") -> tuple[int | None, dict[str, int] | None]:
        """Count the patients of some images, all and by label; None where patients are unknown."""
        dataset, found = self.config.dataset, self.predictions
        if dataset.n_patients is None:
            return None, None
        numbers, labels = found.patient_numbers, np.array(found.labels)
        truth = np.stack([labels == label for label in dataset.classes], axis=1) if found.truth is None else found.truth
        has = (truth == 1) & rows[:, None]
        by_label = {label: len(np.unique(numbers[has[:, i]])) for i, label in enumerate(dataset.classes)}
        return len(np.unique(numbers[rows])), by_label

    def scale_of(self, name: str) -> Scale | None:
        """Return the scale of a model's scores; None for probabilities."""
        return None if self.external is None else self.external.scales.get(name)

    def rows_of(self, split: str) -> "npt.NDArray[np.int64]":
        """Return the rows of the images of a split; those of "val", with cross-fitting, are the training images."""
        wanted = "train" if split == "val" and self.config.n_cross_fit is not None else split
        return np.flatnonzero(np.array(self.predictions.splits) == wanted)

    def head(self, name: str) -> HeadResult:
        """Return the result of one head by its name."""
        return next(head for head in self.heads if head.name == name)

    @property
    def reached(self) -> float | None:
        """The selected head's ROC AUC on the images that heads are scored on."""
        head = self.head(self.selected)
        return (head.val if head.test is None else head.test).auc.value

    @property
    def warning_of_files(self) -> str:
        """What to be told of classifiers that do not look at the image; empty if they are no sign of a shortcut."""
        return "" if self.acquisition is None else self.acquisition.warning(self.reached)

    def y_true(self) -> "npt.NDArray[np.int64]":
        """Return each image's class number, (n,) int64: 1 for the positive labels, or the label's place in `classes`.

        With several labels per image, (n, C) int64 of 1, 0 and -1 for an unknown label.
        """
        if self.predictions.truth is not None:
            return self.predictions.truth
        return class_numbers(self.predictions.labels, self.config.dataset.classes, self.config.dataset.positive)


@dataclass(frozen=True)
class RunHeads:
    """The parts of a run that using its heads needs: a run without its predictions."""

    directory: Path
    config: RunConfig
    selected: str
    heads: tuple[HeadResult, ...]

    def file_of(self, name: str) -> Path:
        """Return the file of a head by its name."""
        return self.directory / next(head.weights_file for head in self.heads if head.name == name)


def class_numbers(
    labels: Sequence[str], classes: Sequence[str], positive: Sequence[str] | None
) -> "npt.NDArray[np.int64]":
    """Return the class numbers of labels, (n,) int64: their places in `classes`, or 1 for the `positive` ones.

    Raises
    ------
    ValueError
        If a label is not one of the classes.
    """
    number = {label: i if positive is None else int(label in positive) for i, label in enumerate(classes)}
    unknown = next((label for label in labels if label not in number), None)
    if unknown is not None:
        raise ValueError(f"{unknown!r} is not one of the classes {', '.join(classes)}")
    return np.array([number[label] for label in labels], dtype=np.int64)
