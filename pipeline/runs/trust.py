"""What a run says of how far its scores can be believed: leakage, operating points, calibration, subgroups, shortcuts."""

from dataclasses import dataclass

from hoarfrost.evaluation import Calibration, OperatingPoint, PointResult, Subgroup, TemperatureFit


@dataclass(frozen=True)
class SharedImages:
    """Two images of two splits that have `what` in common ("the patient 'p1'", "the same bytes").

    One pair stands for each patient or content that is shared; `n_images` of it are in the splits.
    """

    what: str
    first: str
    first_split: str
    second: str
    second_split: str
    n_images: int


@dataclass(frozen=True)
class SimilarImages:
    """Two images of two splits whose embeddings are nearly the same."""

    first: str
    first_split: str
    second: str
    second_split: str
    cosine: float


@dataclass(frozen=True)
class Leakage:
    """What two splits share. `hoarfrost.evaluation.leakage.LeakageReport`, with paths in place of numbers.

    `allowed` says that training went on although patients or bytes are shared (`--allow-leakage`); `not_compared`, why
    near-duplicates were not looked for.
    """

    n_patients: int
    patients: tuple[SharedImages, ...]
    n_contents: int
    contents: tuple[SharedImages, ...]
    n_near_duplicates: int
    near_duplicates: tuple[SimilarImages, ...]
    threshold: float
    allowed: bool = False
    not_compared: str = ""


@dataclass(frozen=True)
class PatientIntervals:
    """Intervals (low, high) of a threshold's shares by bootstrap over patients; None where they are undefined."""

    sensitivity: tuple[float, float] | None
    specificity: tuple[float, float] | None
    ppv: tuple[float, float] | None
    npv: tuple[float, float] | None


@dataclass(frozen=True)
class FixedPoint:
    """An operating point fixed on validation, and what it does on the scored split.

    `result` is None where no threshold meets the rule. Its intervals take samples as independent; where patients have
    several images, `by_patient` has those that do not.
    """

    point: OperatingPoint
    result: PointResult | None
    by_patient: PatientIntervals | None


@dataclass(frozen=True)
class Recalibration:
    """Calibration on the scored split, before and after temperature scaling that was fitted on validation."""

    temperature: TemperatureFit
    before: Calibration
    after: Calibration


@dataclass(frozen=True)
class NetBenefit:
    """A decision curve of the calibrated probabilities, all of one length; that of treating none is zero."""

    thresholds: tuple[float, ...]
    net_benefit: tuple[float, ...]
    treat_all: tuple[float, ...]
    prevalence: float


@dataclass(frozen=True)
class ClassAssessment:
    """A class against the rest, or a label: `n` samples that it is known of, `n_positive` that have it.

    `calibration` is of a label for itself; that of classes, which exclude one another, is one for all of them.
    """

    name: str
    n: int
    n_positive: int
    points: tuple[FixedPoint, ...]
    net_benefit: NetBenefit
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
class SuspectImage:
    """An image whose label its out-of-fold prediction contradicts, see `hoarfrost.evaluation.noisy_labels.SuspectLabel`."""

    path: str
    split: str
    label: str
    predicted: str
    p_label: float
    p_predicted: float
    margin: float
    confident: bool


@dataclass(frozen=True)
class Suspects:
    """Images whose labels may be wrong, the least likely first: by which heads (`source`), of how many images.

    `reason` says why none were looked for.
    """

    source: str
    n_images: int
    images: tuple[SuspectImage, ...]
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
