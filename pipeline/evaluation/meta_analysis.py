"""Figures of several sites summarised: what is the mean, how much do sites differ, what may a new site expect."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit, stdtrit

from hoarfrost.evaluation.checks import normal_quantile
from hoarfrost.evaluation.estimates import Estimate


@dataclass(frozen=True)
class RandomEffects:
    """The mean of sites' figures by a random-effects model.

    Attributes
    ----------
    mean, low, high : float
        The mean over sites with its interval.
    tau2 : float
        The variance of the true figures between sites, on the scale of the model.
    i2 : float
        The share of the variance of the figures that is between sites and not chance, 0 to 1.
    prediction_low, prediction_high : float or None
        The interval in which the true figure of a new site is expected; None with two sites.
    n_sites : int
    """

    mean: float
    low: float
    high: float
    tau2: float
    i2: float
    prediction_low: float | None
    prediction_high: float | None
    n_sites: int = 0


def random_effects(estimates: Sequence[float], standard_errors: Sequence[float], level: float = 0.95) -> RandomEffects:
    """Return the random-effects summary of independent figures.

    Parameters
    ----------
    estimates : sequence of k floats
        On a scale where they are about normal; of areas and shares the logits, see `random_effects_of_areas`.
    standard_errors : sequence of k floats
        Above zero.
    level : float
        Of the interval of the mean, and of the prediction interval.

    Raises
    ------
    ValueError
        If there are fewer than two figures, the lengths differ, or a number is not finite or a standard error not positive.

    Notes
    -----
    The variance between sites is DerSimonian and Laird's. The interval of the mean is Hartung and Knapp's, with k - 1
    degrees of freedom. Their factor is not taken below one: of sites that agree by chance it would make the interval
    narrower than that of a common figure (Knapp and Hartung 2003). The prediction interval has k - 2 degrees of freedom.

    References
    ----------
    DerSimonian and Laird (1986), Controlled Clinical Trials 7(3), 177-188. Knapp and Hartung (2003), Statistics in Medicine
    22(17), 2693-2710. Higgins, Thompson and Spiegelhalter (2009), Journal of the Royal Statistical Society A 172(1), 137-159.
    """
    normal_quantile(level)  # refuses a level that is not between 0 and 1
    y, errors = np.asarray(estimates, np.float64), np.asarray(standard_errors, np.float64)
    k = len(y)
    if y.shape != errors.shape or y.ndim != 1:
        raise ValueError(f"there are {len(y)} estimates, but {len(errors)} standard errors")
    if k < 2:
        raise ValueError(f"a summary over sites needs two sites; there are {k}")
    if not (np.isfinite(y).all() and np.isfinite(errors).all() and (errors > 0).all()):
        raise ValueError("estimates must be finite, and standard errors finite and above zero")
    weights = errors**-2.0
    fixed = float(weights @ y / weights.sum())
    heterogeneity = float(weights @ (y - fixed) ** 2)  # Cochran's Q
    tau2 = max(0.0, (heterogeneity - (k - 1)) / float(weights.sum() - (weights**2).sum() / weights.sum()))
    weights = 1 / (errors**2 + tau2)
    mean = float(weights @ y / weights.sum())
    factor = max(1.0, float(weights @ (y - mean) ** 2) / (k - 1))
    variance = factor / float(weights.sum())
    half = _reach(k - 1, level) * math.sqrt(variance)
    around = None if k < 3 else _reach(k - 2, level) * math.sqrt(tau2 + variance)
    return RandomEffects(
        mean, mean - half, mean + half, tau2,
        max(0.0, 1 - (k - 1) / heterogeneity) if heterogeneity > 0 else 0.0,
        None if around is None else mean - around, None if around is None else mean + around, k,
    )  # fmt: skip


def _reach(degrees: int, level: float) -> float:
    return float(stdtrit(degrees, (1 + level) / 2))


def random_effects_of_areas(areas: Sequence[Estimate], level: float = 0.95) -> RandomEffects:
    """Return the random-effects summary of sites' ROC AUCs, or of other shares, by their logits.

    `mean` and all limits are areas again; `tau2` is of logits.

    Parameters
    ----------
    areas : sequence of k Estimate
        With their 95% intervals. The standard error of a logit is the interval's width on the scale of logits over 2 times
        1.96; of an interval that ends at 1, its lower half counts twice.

    Raises
    ------
    ValueError
        As `random_effects`; or if an area has no logit, or no interval.

    References
    ----------
    Snell, Ensor, Debray, Moons and Riley (2018), Statistical Methods in Medical Research 27(11), 3505-3522 (logits of areas).
    """
    centres, errors = [], []
    for one in areas:
        if one.value is None or one.interval is None or not 0 < one.value < 1 or not 0 < one.interval[0] < 1:
            raise ValueError("an area of 0 or 1, or without an interval, cannot be summarised")
        low, high = one.interval
        centre = float(logit(one.value))
        reached = (
            float(logit(high)) if high < 1 else 2 * centre - float(logit(low))
        )  # no upper limit: as far as the lower
        centres.append(centre)
        errors.append((reached - float(logit(low))) / (2 * normal_quantile(0.95)))
    found = random_effects(centres, errors, level)
    return replace(
        found, mean=float(expit(found.mean)), low=float(expit(found.low)), high=float(expit(found.high)),
        prediction_low=None if found.prediction_low is None else float(expit(found.prediction_low)),
        prediction_high=None if found.prediction_high is None else float(expit(found.prediction_high)),
    )  # fmt: skip
