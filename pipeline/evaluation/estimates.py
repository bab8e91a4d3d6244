"""A figure with its interval: what every metric, share and ratio is given as."""

from dataclasses import dataclass

WILSON = "Wilson"


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
        Of the interval, as it is printed: "DeLong", "bootstrap over patients". Empty where there is none.
    n : int
        Units that it is taken of: images, or patients.
    n_patients : int or None
        Patients that these units are of; None where they are unknown, or are the units.
    """

    value: float | None
    low: float | None
    high: float | None
    method: str = ""
    n: int = 0
    n_patients: int | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval, None where there is none."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Share(Estimate):
    """A proportion: `n_hits` of `n`. Value and interval are None where `n` is zero."""

    method: str = WILSON
    n_hits: int = 0
