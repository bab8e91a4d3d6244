"""What a run says of how far its scores can be believed: leakage, operating points, calibration, subgroups, shortcuts."""

from dataclasses import dataclass

from hoarfrost.evaluation import Calibration, DecisionCurve, OperatingPoint, PointResult, Subgroup, TemperatureFit
from hoarfrost.evaluation.leakage import Leakage
from hoarfrost.evaluation.noisy_labels import SuspectLabel


@dataclass(frozen=True)
class FixedPoint:
    """An operating point fixed on validation, and what it does on the scored split.

    `result` is None where no threshold meets the rule.
    """

    point: OperatingPoint
    result: PointResult | None


@dataclass(frozen=True)
class Recalibration:
    """Calibration on the scored split, before and after temperature scaling that was fitted on validation."""

    temperature: TemperatureFit
    before: Calibration
    after: Calibration


@dataclass(frozen=True)
class ClassAssessment:
    """A class against the rest, or a label: `n` samples that it is known of, `n_positive` that have it.

    `calibration` is of a label for itself; that of classes, which exclude one another, is one for all of them.
    """

    name: str
    n: int
    n_positive: int
    points: tuple[FixedPoint, ...]
    net_benefit: DecisionCurve
    calibration: Recalibration | None = None


@dataclass(frozen=True)
class Confusion:
    """Samples by true class (rows) and most probable class (columns), and their shares of the row, None where it is empty."""

    counts: tuple[tuple[int, ...], ...]
    shares: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Assessment:
    """The selected head on the scored split: "test", or "val" where there is no test split.

    `unit` is what metrics count: "image", or "patient" with how their probabilities were joined ("patient, mean").
    `classes` has one entry with two classes: the positive one. `confusion` is None where an image may have several labels.
    """

    head: str
    split: str
    unit: str
    classes: tuple[ClassAssessment, ...]
    calibration: Recalibration | None
    subgroups: tuple[Subgroup, ...]
    confusion: Confusion | None = None


@dataclass(frozen=True)
class Suspects:
    """Images whose labels may be wrong, the least likely first: by which heads (`source`), of how many images.

    `reason` says why none were looked for.
    """

    source: str
    n_images: int
    images: tuple[SuspectLabel, ...]
    reason: str = ""


def leakage_warnings(leakage: Leakage) -> list[str]:
    """Say what a run's reader must know of leakage, a sentence each."""
    warnings = []
    if leakage.allowed:
        warnings.append(f"Leakage, allowed by --allow-leakage: {shared_text(leakage)}. The figures flatter all heads.")
    if leakage.n_near_duplicates:
        closest = leakage.near_duplicates[0]
        pairs = "pair of images is" if leakage.n_near_duplicates == 1 else "pairs of images are"
        warnings.append(
            f"{leakage.n_near_duplicates:,} {pairs} nearly the same in two splits (cosine above {leakage.threshold:g}); the "
            f"closest: {closest.first} ({closest.first_split}) and {closest.second} ({closest.second_split}), "
            f"{closest.cosine:.3f}. If they are of one patient, the figures flatter all heads: give a patient column."
        )
    return warnings


def shared_text(leakage: Leakage) -> str:
    """Name how much is shared, with an example of each kind."""
    kinds = [
        (leakage.n_patients, leakage.patients, "patient is", "patients are"),
        (leakage.n_contents, leakage.contents, "image, by its bytes, is", "images, by their bytes, are"),
    ]
    texts = []
    for n, pairs, one, several in kinds:
        if n:
            pair = pairs[0]
            texts.append(
                f"{n:,} {one if n == 1 else several} in two splits ({pair.what}: {pair.first} in {pair.first_split}, "
                f"{pair.second} in {pair.second_split})"
            )
    return "; ".join(texts)
