"""What an evaluation records of a cohort that the model was not trained on: what differs, what overlaps, the drop."""

import math
from dataclasses import dataclass, field

from hoarfrost.evaluation.estimates import Estimate
from hoarfrost.evaluation.leakage import Leakage
from hoarfrost.evaluation.updating import Updating

ALL = "all"  # of the sites
NOVEL = "beyond the limit of novelty"
"""A characteristic: images farther from the training images than all but 5% of validated images."""


@dataclass(frozen=True)
class CohortDifference:
    """One characteristic of the training images and of the cohort, in words.

    `training` is empty if it is not known. `differs` is whether the two differ by more than chance or by kind.
    """

    what: str
    training: str
    cohort: str
    differs: bool


@dataclass(frozen=True)
class OverlapCheck:
    """Whether the cohort shares `what` with the images that training saw: `n` of them, or None if it could not be checked.

    `text` is the result as a sentence, or the reason.
    """

    what: str
    n: int | None
    text: str


@dataclass(frozen=True)
class Drop:
    """A metric in the internal test and in the cohort, or in one site of it, and the internal figure minus the external.

    `metric` is "roc_auc", "accuracy", "sensitivity" or "specificity"; `site` is "all", or a value of the site column.
    `reason` states why a figure is missing.
    """

    site: str
    metric: str
    internal: Estimate
    external: Estimate
    drop: Estimate
    reason: str = ""


@dataclass(frozen=True)
class Scale:
    """From the lowest to the highest score of a model. Scores are kept as 0 to 1, and thresholds are stated on this scale."""

    low: float
    high: float

    @property
    def decimals(self) -> int:
        """How many decimals a score has, so that a thousandth of the scale is seen."""
        return max(0, 3 - math.floor(math.log10(self.high - self.low)))

    def own(self, share: float) -> float:
        """Return a score or threshold on the model's own scale."""
        return self.low + share * (self.high - self.low)

    def share(self, own: float) -> float:
        """Return a score or threshold of the model's own scale as 0 to 1."""
        return (own - self.low) / (self.high - self.low)

    def text(self, share: float) -> str:
        """Write a score or threshold on the model's own scale: "3.5"."""
        text = f"{self.own(share):z.{self.decimals}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text


@dataclass(frozen=True)
class External:
    """An external validation.

    Attributes
    ----------
    model : str
        What was evaluated: a head of a run, a head file, or files of predictions.
    frozen : str
        Where thresholds, temperature and conformal scores are from, in sentences.
    internal : str
        What the internal figures are of; or why there are none.
    differences : tuple of CohortDifference
    overlap : tuple of OverlapCheck
    shared : Leakage or None
        The images that were found to overlap; None if nothing could be compared.
    allowed : bool
        Whether the evaluation continued in spite of an overlap (`--allow-leakage`).
    site_column : str
        The column whose values count as sites; empty if there is none.
    drops : tuple of Drop
        Empty if there are no internal figures.
    notes : tuple of str
        What else a reader must know.
    scored : str
        What the scored images are, as an adjective: "external", or "test" for predictions of unknown origin.
    updates : tuple of Updating
        What recalibration on this cohort would bring, cross-validated. No other figure uses it.
    scales : dict of str -> Scale
        By model, where predictions are scores and no probabilities.
    """

    model: str
    frozen: str
    internal: str
    differences: tuple[CohortDifference, ...] = ()
    overlap: tuple[OverlapCheck, ...] = ()
    shared: Leakage | None = None
    allowed: bool = False
    site_column: str = ""
    drops: tuple[Drop, ...] = ()
    notes: tuple[str, ...] = ()
    scored: str = "external"
    updates: tuple[Updating, ...] = ()
    scales: dict[str, Scale] = field(default_factory=dict)

    @property
    def alike(self) -> tuple[str, ...]:
        """The characteristics that are known of both, and do not differ."""
        return tuple(one.what for one in self.differences if one.training and not one.differs)

    @property
    def unknown(self) -> tuple[str, ...]:
        """The characteristics that are not known of the training images."""
        return tuple(one.what for one in self.differences if not one.training and not one.differs)
