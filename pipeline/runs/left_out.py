"""What a run records of `train --leave-out`: heads that never saw a site, scored there."""

from dataclasses import dataclass

from hoarfrost.evaluation.estimates import Estimate
from hoarfrost.evaluation.meta_analysis import RandomEffects

HELD_OUT, MIXED = "site held out", "sites mixed"
"""The names of their probabilities in `left_out.csv`."""
GRAVE = 0.05
"""A drop in ROC AUC of this size, and more than chance, changes the meaning of every other figure."""


@dataclass(frozen=True)
class LeftOutSite:
    """One site, or another value of the column.

    Attributes
    ----------
    site : str
    n : int
        Its images.
    held_out : Estimate
        The ROC AUC there of heads that learned from no image and no patient of the site. No value where `reason` states
        why it was not scored; the others' heads learned from it all the same.
    mixed : Estimate
        The ROC AUC there of heads that learned from other patients of all sites.
    selected : str
        The head that was selected without the site.
    """

    site: str
    n: int
    held_out: Estimate
    mixed: Estimate
    selected: str = ""
    reason: str = ""


@dataclass(frozen=True)
class LeftOut:
    """All sites held out, one after the other, next to the same procedure with sites mixed.

    Attributes
    ----------
    column : str
    sites : tuple of LeftOutSite
    n_folds : int
        Of the mixed split.
    n_shared : int or None
        Patients with images in several sites; None where patients are unknown.
    mixed : Estimate
        The pooled ROC AUC of the mixed split, over all scored sites: what a usual cross-validation reports.
    within : Estimate
        The mean over sites of the ROC AUC within each, of the mixed split.
    held_out : Estimate
        The mean over sites of the ROC AUC within each, held out. Each site counts the same.
    drop : Estimate
        `mixed` minus `held_out`, paired, with an interval over patients.
    summary : RandomEffects or None
        Of the sites held out; None where `reason` states why.
    """

    column: str
    sites: tuple[LeftOutSite, ...]
    n_folds: int
    n_shared: int | None
    mixed: Estimate
    within: Estimate
    held_out: Estimate
    drop: Estimate
    summary: RandomEffects | None
    reason: str = ""

    @property
    def scored(self) -> tuple[LeftOutSite, ...]:
        """The sites that were scored."""
        return tuple(one for one in self.sites if not one.reason)

    @property
    def is_grave(self) -> bool:
        """Whether the figures of mixed splits are clearly too high for a new site."""
        return self.drop.low is not None and self.drop.low > 0 and (self.drop.value or 0.0) >= GRAVE

    @property
    def expectation(self) -> str:
        """What a new site may expect, in sentences."""
        found = self.summary
        if found is None:
            return f"What a new site may expect cannot be summarised: {self.reason}."
        mean = f"the mean ROC AUC over sites is {found.mean:.3f} (95% CI {found.low:.3f} to {found.high:.3f})"
        if found.prediction_low is None or found.prediction_high is None:
            return (
                f"Of {found.n_sites} sites {mean}. How much sites differ cannot be estimated from two, so a new site may "
                "expect less or more."
            )
        return (
            f"A new site may expect a ROC AUC between {found.prediction_low:.3f} and {found.prediction_high:.3f} (95% "
            f"prediction interval from {found.n_sites} sites); {mean}."
        )
