"""What a run says of how far its scores can be believed: leakage, operating points, calibration, subgroups, shortcuts."""

from dataclasses import dataclass

from pipeline.metrics import Calibration, OperatingPoint, PointResult, Subgroup, TemperatureFit


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
    """What two splits share. `pipeline.leakage.LeakageReport`, with paths in place of numbers.

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
class Assessment:
    """The selected head on the scored split: "test", or "val" where there is no test split.

    `unit` is what metrics count: "image", or "patient" with how their probabilities were joined ("patient, mean").
    `classes` has one entry with two classes: the positive one.
    """

    head: str
    split: str
    unit: str
    classes: tuple[ClassAssessment, ...]
    calibration: Recalibration | None
    subgroups: tuple[Subgroup, ...]


@dataclass(frozen=True)
class SuspectImage:
    """An image whose label its out-of-fold prediction contradicts, see `pipeline.noisy_labels.SuspectLabel`."""

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
