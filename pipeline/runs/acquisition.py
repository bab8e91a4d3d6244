"""What a run records of its acquisition-only classifier: what files tell without looking at the image."""

from dataclasses import dataclass, field

from hoarfrost.evaluation.estimates import Estimate

MARGIN = 0.15
"""A classifier whose interval begins this far above 0.5 is worth a caution.

Compressed files of other content have other sizes, so a weaker classifier is no sign of a shortcut by itself.
"""
MEANING = (
    "A head may have learnt how images were acquired instead of the disease, unless the disease itself changes these "
    "facts."
)


@dataclass(frozen=True)
class Acquisition:
    """A classifier that knows a file's format and size and the dataset's columns, but no pixel.

    Attributes
    ----------
    facts : tuple of str
        What it knows: "format", "bytes", and the names of columns.
    setting : str
        Of the logistic regression, as "C = 0.03".
    val, test : Estimate
        Its ROC AUC on the images that validated the heads, and on the test split; None without one.
    by_fact : dict
        The ROC AUC of each fact alone, on the images of `scored`. Empty where all of them together tell nothing.
    """

    facts: tuple[str, ...]
    setting: str
    val: Estimate
    test: Estimate | None
    by_fact: dict[str, float] = field(default_factory=dict)

    @property
    def scored(self) -> Estimate:
        """The ROC AUC on the images that heads are scored on."""
        return self.val if self.test is None else self.test

    @property
    def is_high(self) -> bool:
        """Whether the classifier predicts the class clearly better than chance."""
        return self.scored.low is not None and self.scored.low > 0.5 + MARGIN

    @property
    def warning(self) -> str:
        """The message for the user, with the figures; empty if there is nothing to warn of."""
        if not self.is_high:
            return ""
        best = sorted(self.by_fact, key=self.by_fact.__getitem__, reverse=True)[:3]
        alone = ", ".join(f"{name} {self.by_fact[name]:.2f}" for name in best)
        return (
            f"A classifier that sees no pixel, only {', '.join(self.facts)}, has a ROC AUC of {self.scored.value:.2f} (95% "
            f"CI {self.scored.low:.2f} to {self.scored.high:.2f}; alone: {alone}). {MEANING}"
        )
