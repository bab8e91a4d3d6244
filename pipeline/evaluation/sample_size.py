"""How many images a wanted width of a 95% interval needs: before a study, and for a larger test set."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import expit, logit, ndtri

from hoarfrost.evaluation.checks import Floats, normal_quantile
from hoarfrost.evaluation.discrimination import newcombe_limits, newcombe_variance
from hoarfrost.evaluation.estimates import Estimate
from hoarfrost.evaluation.intervals import NEAR_ONE

Z = normal_quantile(0.95)
WIDTHS = (0.1, 0.05, 0.02, 0.01, 0.005)  # that a larger test set may have
N_NODES = 60  # of the quadrature over a normal distribution: exact to six digits up to a standard deviation of 5
MOST = 1e12  # images; no study is larger


@dataclass(frozen=True)
class LinearPredictor:
    """The distribution of predicted log-odds: `values` (k,) float64 with their `weights` (k,), which sum to one."""

    values: Floats
    weights: Floats

    @classmethod
    def normal(cls, mean: float, deviation: float) -> "LinearPredictor":
        """Return a normal distribution."""
        nodes, weights = hermegauss(N_NODES)
        return cls(mean + deviation * nodes, weights / weights.sum())

    @classmethod
    def binormal(cls, auc: float, prevalence: float) -> "LinearPredictor":
        """Return that of calibrated probabilities which are normal in both classes, with one variance and this ROC AUC."""
        distance = math.sqrt(2) * float(ndtri(auc))
        centre = float(logit(prevalence))
        both = [cls.normal(centre + side * distance**2 / 2, abs(distance)) for side in (-1, 1)]
        weights = [(1 - prevalence) * both[0].weights, prevalence * both[1].weights]
        return cls(np.concatenate([one.values for one in both]), np.concatenate(weights))


@dataclass(frozen=True)
class Assumed:
    """What a planned study is assumed to find.

    Attributes
    ----------
    prevalence : float, in (0, 1)
    auc : float, in (0.5, 1)
    sensitivity, specificity : float or None
        At the operating point; not planned where None.
    images_per_patient : float
    icc : float, in [0, 1]
        Correlation between images of the same patient. At 1, they count as one image.
    linear_predictor : LinearPredictor or None
        Of calibrated probabilities; None for that of `LinearPredictor.binormal`.
    images_for_area : float or None
        Images that a ROC AUC with the wanted width needs, where a run's own interval shows it.
    """

    prevalence: float
    auc: float
    sensitivity: float | None = None
    specificity: float | None = None
    images_per_patient: float = 1.0
    icc: float = 1.0
    linear_predictor: LinearPredictor | None = None
    images_for_area: float | None = None

    @property
    def design_effect(self) -> float:
        """The factor by which images of the same patients make variances larger; 1 for independent images."""
        return 1 + (self.images_per_patient - 1) * self.icc


@dataclass(frozen=True)
class Needed:
    """What one quantity needs: `images` of `patients`, `cases` of them positive, for an interval of this width."""

    quantity: str
    assumed: float
    width: float
    images: int
    patients: int
    cases: int


@dataclass(frozen=True)
class Plan:
    """The needs of each quantity; the study needs the largest of them."""

    prevalence: float
    images_per_patient: float
    design_effect: float
    needed: tuple[Needed, ...]

    @property
    def largest(self) -> Needed:
        """The quantity that needs most patients."""
        return max(self.needed, key=lambda one: one.patients)


@dataclass(frozen=True)
class Precision:
    """The width of a test set's interval of the ROC AUC, and what a smaller one needs.

    Attributes
    ----------
    width : float
    wanted : float or None
        The next smaller of `WIDTHS`; None with `images` where the area is 0 or 1, or the width is below all.
    images : int or None
        Units (images, or patients if these are scored) that the wanted width needs, as in this test set.
    patients : int or None
        Their patients, where some have several images.
    design_effect : float or None
        Images that tell as much as one independent image; None with more than two classes.
    """

    width: float
    wanted: float | None = None
    images: int | None = None
    patients: int | None = None
    design_effect: float | None = None

    def sentence(self, split: str, unit: str) -> str:
        """Return the statement that is printed next to the ROC AUC; `unit` is "image" or "patient"."""
        text = f"This {split} set gives an interval of width {_digits(self.width)}"
        if self.wanted is None or self.images is None:
            return f"{text}."
        of = "" if self.patients is None else f" of about {self.patients:,} patients"
        return f"{text}; {_digits(self.wanted)} needs about {self.images:,} {unit}s{of}."


def _digits(width: float) -> str:
    return f"{width:.2f}" if width >= 0.095 or round(width, 2) == width else f"{width:.3f}"


# -- independent images -------------------------------------------------------------------------------------------------


def images_for_area(auc: float, prevalence: float, width: float) -> float:
    """Return the independent images for a ROC AUC whose 95% interval has this width.

    Raises
    ------
    ValueError
        If the area is not in (0.5, 1), or prevalence or width is not in (0, 1).

    Notes
    -----
    Twice 1.96 standard errors, by Newcombe's variance. From an area of 0.9, where the report prints Newcombe's score
    interval, the width is that interval's, which is wider near 1.

    References
    ----------
    Riley et al. (2021), Statistics in Medicine 40(19), 4230-4251, equation 8. Newcombe (2006), Statistics in Medicine
    25(4), 559-573.
    """
    _check(("ROC AUC", auc, 0.5), ("prevalence", prevalence, 0), ("width", width, 0))
    if auc >= NEAR_ONE:
        return _images_by_limits(auc, prevalence, width)

    def wider(n: float) -> float:
        return 2 * Z * math.sqrt(newcombe_variance(auc, n * prevalence, n * (1 - prevalence))) - width

    return _narrow_enough(wider, 2)


def _images_by_limits(auc: float, prevalence: float, width: float) -> float:
    """Return the independent images with which Newcombe's score interval has this width."""

    def wider(n: float) -> float:
        low, high = newcombe_limits(auc, n * prevalence, n * (1 - prevalence))
        return high - low - width

    return _narrow_enough(wider, 1e-6)


def _narrow_enough(wider: Callable[[float], float], least: float) -> float:
    """Return the images, `least` or more, with which an interval is not wider than wanted."""
    from scipy.optimize import brentq

    if wider(MOST) > 0:
        raise ValueError(f"such an interval of the ROC AUC needs more than {MOST:,.0f} images")
    return float(brentq(wider, least, MOST)) if wider(least) > 0 else least


def images_for_slope(predictor: LinearPredictor, width: float, *, slope: float = 1.0) -> float:
    """Return the independent images for a calibration slope whose 95% Wald interval has this width.

    Raises
    ------
    ValueError
        If probabilities are all equal, or all 0 or 1; or the width is not positive.

    References
    ----------
    Riley et al. (2021), Statistics in Medicine 40(19), 4230-4251, equation 6: from Fisher's information.
    """
    _check(("width", width, 0), most=math.inf)
    p = expit(slope * predictor.values)
    information = predictor.weights * p * (1 - p)
    i00, i01, i11 = (float((information * predictor.values**power).sum()) for power in range(3))
    if not i00 * i11 - i01**2 > 1e-12 * i00**2:
        raise ValueError(
            "predicted probabilities are all equal, or all 0 or 1, so no calibration slope can be estimated"
        )
    return i00 / (i00 * i11 - i01**2) / (width / (2 * Z)) ** 2


def images_for_ratio(prevalence: float, width: float) -> float:
    """Return the independent images for a ratio of observed to expected cases, of 1, whose 95% interval has this width.

    References
    ----------
    Riley et al. (2021), Statistics in Medicine 40(19), 4230-4251, equations 4 and 5: normal on the scale of the logarithm.
    """
    _check(("prevalence", prevalence, 0))
    _check(("width", width, 0), most=math.inf)
    return (1 - prevalence) / prevalence / (math.asinh(width / 2) / Z) ** 2


def images_for_share(share: float, portion: float, width: float) -> float:
    """Return the independent images for a share of a `portion` of them whose 95% interval has this width.

    The portion is the prevalence for a sensitivity, and the rest for a specificity. It is the larger number of two: of
    Wald's interval, as published, and of Wilson's, which the report prints and which is wider near 0 and 1.

    References
    ----------
    Buderer (1996), Academic Emergency Medicine 3(9), 895-900. Wilson (1927), JASA 22(158), 209-212.
    """
    _check(("width", width, 0), ("portion", portion, 0))
    if not 0 <= share <= 1:
        raise ValueError(f"a share of {share}; expected 0 to 1")
    variance, half = share * (1 - share), width / 2
    wald = variance * (Z / half) ** 2
    rest = variance - 2 * half**2
    wilson = Z**2 * (rest + math.sqrt(rest**2 + half**2 * (1 - 4 * half**2))) / (2 * half**2)
    return max(wald, wilson) / portion


def _check(*given: tuple[str, float, float], most: float = 1) -> None:
    for name, value, least in given:
        if not least < value < most:
            raise ValueError(f"{name} {value:g} is not between {least:g} and {most:g}")


# -- a study, and a larger test set -------------------------------------------------------------------------------------


def plan_study(assumed: Assumed, *, width: float = 0.1, calibration_width: float = 0.2) -> Plan:
    """Return how many images, patients and cases each quantity of an external validation needs.

    Parameters
    ----------
    assumed : Assumed
    width : float
        Of the 95% intervals of ROC AUC, sensitivity and specificity.
    calibration_width : float
        Of those of calibration slope and observed/expected.

    Raises
    ------
    ValueError
        As `images_for_area` and `images_for_slope`; or if a quantity needs more images than any study has.
    """
    times = assumed.design_effect
    found = tuple(
        _needed(name, value, wanted, n * times, assumed)
        for name, value, wanted, n in _independent(assumed, width, calibration_width)
    )
    return Plan(assumed.prevalence, assumed.images_per_patient, times, found)


def _independent(assumed: Assumed, width: float, by: float) -> Iterator[tuple[str, float, float, float]]:
    """Yield each quantity with its value, its width and the independent images that it needs."""
    prevalence, predictor = assumed.prevalence, assumed.linear_predictor
    own = None if assumed.images_for_area is None else assumed.images_for_area / assumed.design_effect
    area = images_for_area(assumed.auc, prevalence, width) if own is None else own
    yield "ROC AUC", assumed.auc, width, area
    yield (
        "calibration slope",
        1.0,
        by,
        images_for_slope(LinearPredictor.binormal(assumed.auc, prevalence) if predictor is None else predictor, by),
    )
    yield "observed/expected", 1.0, by, images_for_ratio(prevalence, by)
    if assumed.sensitivity is not None:
        yield "sensitivity", assumed.sensitivity, width, images_for_share(assumed.sensitivity, prevalence, width)
    if assumed.specificity is not None:
        yield "specificity", assumed.specificity, width, images_for_share(assumed.specificity, 1 - prevalence, width)


def _needed(quantity: str, value: float, width: float, n_images: float, assumed: Assumed) -> Needed:
    if n_images > MOST:
        raise ValueError(f"{quantity} with an interval of width {width:g} needs more than {MOST:,.0f} images")
    images, patients = _whole(n_images, assumed.images_per_patient)
    return Needed(quantity, value, width, images, patients, math.ceil(patients * assumed.prevalence - 1e-9))


def _whole(n_images: float, per_patient: float) -> tuple[int, int]:
    """Return the images and patients that are needed: whole patients, with all their images."""
    patients = math.ceil(n_images / per_patient - 1e-9)
    return math.ceil(max(n_images, patients * per_patient) - 1e-9), patients


def images_for_width(area: Estimate, n_positive: int | None, width: float) -> float:
    """Return the units, like those of an estimate, with which its interval would have another width.

    Newcombe's interval of an independent sample gives the numbers for both widths; the estimate's units are as many times
    more as its own width shows. With more than two classes (`n_positive` = None), widths shrink by the square root.

    Raises
    ------
    ValueError
        If the estimate has no interval, or is 0 or 1.
    """
    if area.interval is None or area.value is None or not 0 < area.value < 1:
        raise ValueError("no interval of a ROC AUC between 0 and 1")
    own = area.interval[1] - area.interval[0]
    if n_positive is None:
        return area.n * (own / width) ** 2
    prevalence = n_positive / area.n
    return area.n * _images_by_limits(area.value, prevalence, width) / _images_by_limits(area.value, prevalence, own)


def precision_of(area: Estimate, n_positive: int | None) -> Precision | None:
    """Return the width of a ROC AUC's interval and what a smaller one needs; None without an interval.

    Parameters
    ----------
    area : Estimate
        With the interval that is printed.
    n_positive : int or None
        Positive units of its `n`; None with more than two classes.
    """
    if area.interval is None:
        return None
    width = area.interval[1] - area.interval[0]
    wanted = next((one for one in WIDTHS if one < 0.95 * width), None)
    if wanted is None or area.value is None or not 0 < area.value < 1:
        return Precision(width)
    per_patient = area.n / (area.n_patients or area.n)
    n, patients = _whole(images_for_width(area, n_positive, wanted), per_patient)
    effect = None if n_positive is None else area.n / _images_by_limits(area.value, n_positive / area.n, width)
    return Precision(width, wanted, n, None if per_patient == 1 else patients, effect)
