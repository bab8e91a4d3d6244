"""A figure with its interval, and Wilson's interval of a proportion."""

import math
from dataclasses import dataclass, replace
from typing import Self

from hoarfrost.evaluation.checks import normal_quantile

WILSON = "Wilson"
OPTIMISTIC = "selected on these; optimistic"
"""In place of the method of an interval: there is none, because the samples also selected the head."""
TOO_FEW = "too few patients for an interval"
"""The same, with their number: intervals over fewer patients contain the truth too rarely."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval.

    Attributes
    ----------
    value : float or None
        None where it is undefined, or infinite.
    low, high : float or None
        None where there is no interval, or no limit on this side.
    method : str
        Of the interval, as it is printed: "DeLong", "bootstrap over patients". Without an interval it is empty, or states
        why: "selected on these; optimistic", "too few patients for an interval: 4".
    n : int
        Number of units: images, or patients.
    n_patients : int or None
        Patients of these units; None where they are unknown, or are the units.
    """

    value: float | None
    low: float | None
    high: float | None
    method: str = ""
    n: int = 0
    n_patients: int | None = None

    @property
    def why_none(self) -> str:
        """Why there is no interval, as it is printed in its place; "" if there is one, or nothing to be said."""
        return self.method if states_why(self.method) else ""

    def without_interval(self, why: str) -> Self:
        """Return the figure without an interval; `why` is printed in its place."""
        return replace(self, low=None, high=None, method=why)

    @property
    def is_optimistic(self) -> bool:
        """Whether the samples also selected the head, so that an interval would not cover."""
        return self.method == OPTIMISTIC

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval, or None."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Share(Estimate):
    """A proportion: `n_hits` of `n`. Value and interval are None where `n` is zero."""

    method: str = WILSON
    n_hits: int = 0


def states_why(method: str) -> bool:
    """Return whether what is recorded as an interval's method states why there is none."""
    return method.startswith((OPTIMISTIC, TOO_FEW))


def wilson(n_hits: int, n: int, *, level: float = 0.95) -> Share:
    """Return a proportion, `n_hits` of `n` independent trials, with Wilson's score interval.

    Raises
    ------
    ValueError
        If the hits are not 0 to n, or `level` is not between 0 and 1.

    Notes
    -----
    As `scipy.stats.binomtest(n_hits, n).proportion_ci(method="wilson")`, without its exact test, which takes a
    hundred times as long.

    References
    ----------
    Wilson (1927), Journal of the American Statistical Association 22(158), 209-212. Brown, Cai and
    DasGupta (2001), Statistical Science 16(2), 101-133.
    """
    z2 = normal_quantile(level) ** 2
    if not 0 <= n_hits <= n:
        raise ValueError(f"{n_hits} hits of {n}")
    if n == 0:
        return Share(None, None, None)
    share = n_hits / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low = 0.0 if n_hits == 0 else max(0.0, centre - half)
    high = 1.0 if n_hits == n else min(1.0, centre + half)
    return Share(share, low, high, n=int(n), n_hits=int(n_hits))
