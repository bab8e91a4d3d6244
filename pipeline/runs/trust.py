"""What a run records about how far its scores can be trusted: leakage, operating points, calibration, subgroups."""

from collections.abc import Callable
from dataclasses import dataclass

from hoarfrost.evaluation import (
    Calibration,
    DecisionCurve,
    OperatingPoint,
    PointResult,
    Share,
    Subgroup,
    TemperatureFit,
)
from hoarfrost.evaluation.leakage import Leakage
from hoarfrost.evaluation.metrics import across_folds, three_digits
from hoarfrost.evaluation.noisy_labels import SuspectLabel
from hoarfrost.evaluation.subgroup_differences import Heterogeneity, SubgroupCalibration, SubgroupDifference

SAME_ERROR = 1.05
"""Ratio up to which two calibration errors count as equal: the error by chance is simulated, no more exactly than this."""


@dataclass(frozen=True)
class FixedPoint:
    """An operating point chosen on validation, and its result on the scored split.

    Without a threshold that meets the rule, `result` = None. `by_fold` are cross-fitted thresholds, one per fold: the
    result is that of each sample at the threshold of its fold, and the threshold of `point`, which all samples choose,
    decides nothing.
    """

    point: OperatingPoint
    result: PointResult | None
    by_fold: tuple[float, ...] = ()

    def at(self, number: Callable[[float], str] = three_digits) -> str:
        """Return the threshold that decides, as "0.470"; or the range of cross-fitted ones."""
        if self.by_fold:
            return across_folds(self.by_fold, number)
        return "" if self.point.threshold is None else number(self.point.threshold)

    def decides(self, number: Callable[[float], str] = three_digits) -> str:
        """Return what makes a sample positive, as "threshold >= 0.470"; or the range of cross-fitted thresholds."""
        return self.at(number) if self.by_fold else f"threshold >= {self.at(number)}"


@dataclass(frozen=True)
class Recalibration:
    """Calibration on the scored split, before and after temperature scaling that was fitted on validation."""

    temperature: TemperatureFit
    before: Calibration
    after: Calibration

    @property
    def both(self) -> tuple[tuple[float, Calibration], ...]:
        """Temperature and calibration, before and after scaling."""
        return (1.0, self.before), (self.temperature.temperature, self.after)

    @property
    def verdict(self) -> str:
        """The calibration error compared with that of perfectly calibrated probabilities, and before and after scaling."""
        before, after, fit = self.before, self.after, self.temperature
        larger = "no larger than" if before.error <= SAME_ERROR * before.error_by_chance else "larger than"
        if larger == "larger than" and before.error_interval is not None and before.error_interval[0] <= 0:
            larger = "not clearly larger than"
        scaling = f"Temperature scaling (T = {fit.temperature:.2f})"
        if fit.reason:
            effect = f"No temperature scaling (T = 1): {fit.reason}."
        elif fit.at_limit:  # a run of an earlier version, which used such a temperature
            effect = f"{scaling} could not be fitted: T is at its limit."
        elif after.error < before.error / SAME_ERROR:
            effect = f"{scaling} reduced it to {after.error:.3f}."
        else:
            effect = f"{scaling} did not improve it."
        return f"Calibration error {before.error:.3f}, {larger} chance ({before.error_by_chance:.3f}). {effect}"


@dataclass(frozen=True)
class ClassAssessment:
    """A class against the rest, or a label: `n` samples with a known value, `n_positive` that have it.

    `calibration` belongs to a label. Classes that exclude one another share one calibration, in `Assessment`.
    `net_benefit` is None for scores that are not probabilities. For a stated prevalence it is that of probabilities which
    were shifted to it from the prevalence `shifted_from`.
    """

    name: str
    n: int
    n_positive: int
    points: tuple[FixedPoint, ...]
    net_benefit: DecisionCurve | None
    calibration: Recalibration | None = None
    shifted_from: float | None = None

    @property
    def shift(self) -> str:
        """From which prevalence the probabilities of net benefit were shifted: "shifted from ..."; "" if they were not."""
        if self.shifted_from is None:
            return ""
        of = "scored" if self.shifted_from == self.n_positive / self.n else "validated"
        return f"shifted from a prevalence of {self.shifted_from:.3f}, that of the {of} samples"


@dataclass(frozen=True)
class Confusion:
    """Samples by true class (rows) and predicted class (columns), and their shares of the row, None if it is empty."""

    counts: tuple[tuple[int, ...], ...]
    shares: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Assessment:
    """The selected head on the scored split: "test", or "val" where there is no test split.

    `unit` is what metrics count: "image", or "patient" with how their probabilities were joined ("patient, mean").
    `classes` has one entry with two classes: the positive one. With several labels per image, `confusion` = None.
    `held_by_sets` is the share of test units whose conformal set for a coverage of 0.9 holds the true class; None without a
    test split, and in runs of earlier versions. These have no `subgroup_calibration`, `subgroup_differences` and
    `heterogeneity` either.
    """

    head: str
    split: str
    unit: str
    classes: tuple[ClassAssessment, ...]
    calibration: Recalibration | None
    subgroups: tuple[Subgroup, ...]
    confusion: Confusion | None = None
    held_by_sets: Share | None = None
    subgroup_calibration: tuple[SubgroupCalibration, ...] = ()
    subgroup_differences: tuple[SubgroupDifference, ...] = ()
    heterogeneity: tuple[Heterogeneity, ...] = ()


@dataclass(frozen=True)
class Suspects:
    """Images whose labels may be wrong, the least probable label first: found by `source` among `n_images`.

    `reason` states why none were searched. `has_test` is whether images of the test split were searched too; runs of
    earlier versions did.
    """

    source: str
    n_images: int
    images: tuple[SuspectLabel, ...]
    reason: str = ""
    has_test: bool = True


_LONG = {"train": "training", "val": "validation", "test": "test"}


def leakage_warnings(leakage: Leakage) -> list[str]:
    """Return what a reader of the run must know about leakage, a text for each kind."""
    warnings = []
    if leakage.allowed:
        shared = shared_text(leakage)
        warnings.append(f"Leakage, allowed by --allow-leakage: {shared}. The test scores of all heads are too high.")
    if leakage.n_near_duplicates:
        first = leakage.near_duplicates[0]
        pairs = (
            "pair of near-identical images is"
            if leakage.n_near_duplicates == 1
            else "pairs of near-identical images are"
        )
        warnings.append(
            f"{leakage.n_near_duplicates:,} {pairs} {_where(leakage)} (cosine above {leakage.threshold:g}). "
            f"The closest pair: {first.first} ({first.first_split}) and {first.second} ({first.second_split}), cosine "
            f"{first.cosine:.3f}. If they show the same patient, the test scores are too high. Add a patient column to keep "
            "them together."
        )
    if leakage.together is not None and leakage.together.n_with_different_labels:
        n, pair = leakage.together.n_with_different_labels, leakage.together.different_labels[0]
        groups = (
            "1 group of near-identical images contains" if n == 1 else f"{n:,} groups of near-identical images contain"
        )
        warnings.append(
            f"{groups} different labels, for example {pair.first} ({pair.first_label or 'none'}) and {pair.second} "
            f"({pair.second_label or 'none'}). Near-identical images rarely differ in the diagnosis: check these labels."
        )
    return warnings


def together_text(leakage: Leakage) -> str:
    """Return how many near-identical images were kept together; an empty text if none were."""
    found = leakage.together
    if found is None or not found.n_groups:
        return ""
    groups = "1 group" if found.n_groups == 1 else f"{found.n_groups:,} groups"
    return (
        f"{found.n_images:,} images in {groups} of near-identical images stay together in the splits and folds that are "
        f"drawn here (cosine above {leakage.threshold:g}; largest group: {found.largest:,} images)."
    )


def _where(leakage: Leakage) -> str:
    """Name the two splits of near-identical images, if all pairs are listed and in the same two."""
    found = {frozenset((pair.first_split, pair.second_split)) for pair in leakage.near_duplicates}
    if len(found) > 1 or len(leakage.near_duplicates) < leakage.n_near_duplicates:
        return "in different splits"
    return "split between " + " and ".join(long for name, long in _LONG.items() if name in next(iter(found)))


def shared_text(leakage: Leakage) -> str:
    """Return how many patients and images two splits share, with an example of each."""
    kinds = [
        (leakage.n_patients, leakage.patients, "patient is", "patients are"),
        (leakage.n_contents, leakage.contents, "identical image is", "identical images are"),
    ]
    return "; ".join(
        f"{n:,} {one if n == 1 else several} in two splits ({pairs[0].what}: {pairs[0].first} in {pairs[0].first_split}, "
        f"{pairs[0].second} in {pairs[0].second_split})"
        for n, pairs, one, several in kinds
        if n
    )
