"""A learning curve beyond its last point: an inverse power law, with a band by bootstrap over the draws."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import digamma

from hoarfrost.evaluation.checks import Floats

FURTHEST = 4
"""Times the training images; nothing is stated beyond."""
FEWEST_SIZES = 4  # one more than the law has parameters
POWERS = np.geomspace(0.1, 2, 40)
N_DRAWS = 1_000
WIDENED = 1.25
"""Factor of the draws' differences: five draws of each size show them too small. With it the band covers as stated."""
MOST_FLAT = 0.05  # share of bootstrap draws without any rise
LEAST_SPREAD = 1e-4
SLOWEST = -0.5
"""Power of n with which variances shrink at least: few draws leave it open, and heads of more images vary less."""


@dataclass(frozen=True)
class Extrapolation:
    """The law at `n_images` (k,) with its 95% band; all are empty where `reason` says why there is none."""

    n_images: tuple[int, ...]
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    reason: str = ""


def extrapolate(
    sizes: Sequence[int], areas: Sequence[Sequence[float]], at: Sequence[int], *, seed: int = 0
) -> Extrapolation:
    """Fit a - b n^-c to a learning curve, with b >= 0 and a <= 1, and return it at other numbers of training images.

    Parameters
    ----------
    sizes : sequence of int, length k
        Training images of each point, ascending.
    areas : sequence of sequences of float
        The ROC AUC of each draw, for each point; a point may have a single one.
    at : sequence of int
        Where the law is wanted, at most `FURTHEST` times the last size.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Extrapolation
        Without values where the law is not identified: fewer than four sizes, draws of fewer than three sizes, a rise that
        is not larger than chance, or a band that is wider than the whole rise.

    Raises
    ------
    ValueError
        If it is wanted too far from the data.

    Notes
    -----
    Weighted least squares on a grid of c. The bootstrap draws residuals, which are pooled over sizes after division by a
    standard deviation that is a power of the number of images. What all images have in common, as draws of them do, is drawn
    too: it has the variance of training sets of the last size. Differences between test images are not in the band.

    References
    ----------
    Mukherjee et al. (2003), Journal of Computational Biology 10(2), 119-142. Figueroa et al. (2012), BMC Medical
    Informatics and Decision Making 12, 8.
    """
    if max(at) > FURTHEST * sizes[-1]:
        raise ValueError(f"{max(at)} images are more than {FURTHEST} times the {sizes[-1]} of the curve")
    groups, n = [np.asarray(one, np.float64) for one in areas], np.asarray(sizes, np.float64)
    if len(n) < FEWEST_SIZES:
        return _none(f"a law of three parameters needs {FEWEST_SIZES} sizes; there are {len(n)}")
    if sum(len(one) > 1 for one in groups[:-1]) < FEWEST_SIZES - 1:
        return _none("too few sizes have several draws, so their differences are unknown")
    relative, wanted = n / n[-1], np.asarray(at, np.float64) / n[-1]
    means, counts, spread = np.array([one.mean() for one in groups]), [len(one) for one in groups], _spread(n, groups)
    weights = np.array(counts) / spread**2
    fitted = _law(relative, means[None], weights)
    rng, found = np.random.default_rng(seed), _at(fitted, relative)[0]
    own = spread * np.sqrt(
        1 - relative
    )  # of draws from the same images; what all images share is the same in all draws
    residuals = _residuals(groups, own)
    drawn = np.stack(
        [found[i] + own[i] * rng.choice(residuals, (N_DRAWS, counts[i])).mean(1) for i in range(len(n))], axis=1
    )
    drawn += WIDENED * spread[-1] * rng.normal(size=(N_DRAWS, 1))
    laws = _law(relative, drawn, weights)
    if (laws[1] <= 0).mean() > MOST_FLAT:
        return _none("the curve does not rise by more than its draws differ")
    low, high = np.quantile(_at(laws, np.append(wanted, 2)), (0.025, 0.975), axis=0)
    if high[-1] - low[-1] > means.max() - means.min():
        return _none("at twice the images the band would be wider than the whole rise of the curve")
    values = _at(fitted, wanted)[0]
    least, most = np.minimum(low[:-1], values), np.maximum(high[:-1], values)
    return Extrapolation(tuple(at), tuple(values.tolist()), tuple(least.tolist()), tuple(most.tolist()))


def _none(reason: str) -> Extrapolation:
    return Extrapolation((), (), (), (), reason)


def _spread(n: Floats, groups: Sequence[Floats]) -> Floats:
    """Return the standard deviation over training sets of each size, (k,): a power of the size, fitted to the draws.

    Draws of a share s of the same images differ by a factor of 1 - s less in variance than sets of new images.
    """
    several = [i for i, one in enumerate(groups[:-1]) if len(one) > 1]
    freedom = np.array([len(groups[i]) - 1 for i in several])
    logs = np.log([max(float(groups[i].var(ddof=1)), LEAST_SPREAD**2) for i in several])
    logs -= np.log(1 - n[several] / n[-1])
    logs -= digamma(freedom / 2) - np.log(freedom / 2)  # the mean logarithm of a variance that few draws estimate
    x = np.log(n[several])
    centre = np.average(x, weights=freedom)
    slope = min(SLOWEST, float((freedom * (x - centre) * logs).sum() / (freedom * (x - centre) ** 2).sum()))
    found: Floats = np.exp((np.average(logs, weights=freedom) + slope * (np.log(n) - centre)) / 2)
    return found


def _residuals(groups: Sequence[Floats], own: Floats) -> Floats:
    """Return the draws' distances from their mean, in standard deviations, pooled over sizes."""
    return np.concatenate([
        WIDENED * np.sqrt(len(one) / (len(one) - 1)) * (one - one.mean()) / deviation
        for one, deviation in zip(groups[:-1], own, strict=False)
        if len(one) > 1
    ])  # fmt: skip


def _law(n: Floats, y: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Fit a, b and c to each row of `y` (B, k) at sizes `n` (k,); return them, each (B,)."""
    w = weights / weights.sum()
    mean = (y @ w)[:, None]  # (B, 1)
    x = n ** -POWERS[:, None]  # (C, k)
    centred = x - (x @ w)[:, None]
    b = -(((y - mean) * w) @ centred.T) / (centred**2 @ w)  # (B, C)
    a = mean + b * (x @ w)
    # The limits one by one: a ceiling above 1, then a curve that falls.
    b = np.where(a > 1, ((1 - y) * w) @ x.T / (x**2 @ w), b)
    a = np.where(a > 1, 1.0, a)
    a, b = np.where(b < 0, np.minimum(mean, 1), a), np.maximum(b, 0)
    errors = ((y[:, None, :] - a[..., None] + b[..., None] * x) ** 2) @ w  # (B, C)
    rows, best = np.arange(len(y)), errors.argmin(axis=1)
    return a[rows, best], b[rows, best], POWERS[best]


def _at(law: tuple[Floats, Floats, Floats], n: Floats) -> Floats:
    """Return laws (B,) at sizes (k,), as (B, k)."""
    a, b, c = (one[:, None] for one in law)
    found: Floats = a - b * n**-c
    return found
