"""The records of heads trained on parts of the data: folds, random splits, the learning curve."""

from dataclasses import dataclass
from statistics import fmean

from hoarfrost.evaluation import Comparison, Scores, Share
from hoarfrost.evaluation.estimates import Estimate
from hoarfrost.evaluation.intervals import variance_inflation
from hoarfrost.evaluation.stability import Instability


@dataclass(frozen=True)
class CrossValidated:
    """One head, or reference, over all folds: the scores of its pooled predictions, and each fold's ROC AUC.

    `difference` compares it with the heads that the folds selected; None for these, and in runs of earlier versions.
    """

    name: str
    pooled: Scores
    fold_roc_aucs: tuple[float, ...]
    difference: Comparison | None = None


@dataclass(frozen=True)
class CrossValidation:
    """The result of cross-validation. `selected` is the head that each fold's own validation selected.

    `held_by_sets` is the share of held-out images, or patients, whose conformal set for a coverage of 0.9 holds the true
    class; None in runs of earlier versions.
    """

    n_folds: int
    n_images: int
    selected: tuple[str, ...]
    results: tuple[CrossValidated, ...]
    held_by_sets: Share | None = None

    @property
    def whole(self) -> CrossValidated:
        """The result of the whole procedure, with the head that each fold selected."""
        return self.results[0]

    @property
    def meaning(self) -> str:
        """What the intervals of pooled predictions are about, in two sentences."""
        n, times = self.n_images - self.n_images // self.n_folds, variance_inflation(self.n_folds)
        return (
            f"Intervals are of the average performance of heads that are trained in this way on about {n:,} images. Their "
            f"variance is {times:.2f} times that of a single test split, because the training sets of the folds overlap "
            "(Nadeau and Bengio 2003)."
        )


@dataclass(frozen=True)
class RepeatedSplits:
    """The whole procedure on repeated random splits: the ROC AUC of each on what it held out, and the selected head.

    `n_trained` and `n_held_out` are images of a split, on average. `instability` is None where no image was held out twice.
    """

    n_trained: int
    n_held_out: int
    roc_auc: Estimate
    roc_aucs: tuple[float, ...]
    selected: tuple[str, ...]
    instability: Instability | None

    @property
    def n_splits(self) -> int:
        """The number of splits."""
        return len(self.roc_aucs)


@dataclass(frozen=True)
class LearningPoint:
    """The selected head, trained on a share of the training patients: the ROC AUCs of each draw and seed.

    `by_draw` is the mean over the seeds of each draw; empty in runs of earlier versions.
    """

    share: float
    n_patients: int
    n_images: int
    roc_aucs: tuple[float, ...]
    by_draw: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """The mean ROC AUC, which every output shows."""
        return fmean(self.roc_aucs)
