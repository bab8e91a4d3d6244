"""What a run records of its acquisition-only classifiers: what files tell without looking at the image."""

from collections.abc import Collection
from dataclasses import dataclass, field

from hoarfrost.evaluation.estimates import Estimate

MARGIN = 0.15
"""A classifier whose interval begins this far above 0.5 is worth a caution.

Compressed files of other content have other sizes, so a weaker classifier is no sign of a shortcut by itself.
"""
CLOSE = 0.05
"""A classifier that knows facts of the content is worth a caution if the head's ROC AUC is not this much higher.

Lesions change grey levels. A head that does much better than they do has learnt more than these.
"""
BYTES = "bytes"
GREY_LEVELS = ("grey mean", "grey SD", "grey skewness", "grey kurtosis")
REGION_SIZE = ("region width", "region height", "region aspect ratio")
CONTENT = frozenset({BYTES, *GREY_LEVELS, *REGION_SIZE})
"""Facts that depend on what an image shows, too: a compressed file is larger where there is more detail."""
MEANING = (
    "A head may have learnt how images were acquired instead of the disease, unless the disease itself changes these "
    "facts."
)
MEANING_OF_CONTENT = (
    "The selected head is hardly better. File sizes and grey levels also depend on what the images show, so this is a sign "
    "of a shortcut only if the classes were acquired or stored in different ways."
)


def of_file(fact: str) -> str:
    """Return the name of a fact where a column of the dataset has its own."""
    return f"{fact} of the file"


def content_of(names: Collection[str]) -> frozenset[str]:
    """Return those of some facts and columns that are in `CONTENT`, but no column that is only named like one."""
    named = {of_file(fact) if of_file(fact) in names else fact for fact in CONTENT}
    return frozenset(named.intersection(names))


@dataclass(frozen=True)
class Twin:
    """A classifier that knows facts of the files and the dataset's columns, but does not look at the image.

    Attributes
    ----------
    facts : tuple of str
        What it knows: "format", "bytes", "grey mean", and the names of columns.
    setting : str
        Of the logistic regression, as "C = 0.03".
    val, test : Estimate
        Its ROC AUC on the images that validated the heads, and on the test split; None without one.
    """

    facts: tuple[str, ...]
    setting: str
    val: Estimate
    test: Estimate | None

    @property
    def scored(self) -> Estimate:
        """The ROC AUC on the images that heads are scored on."""
        return self.val if self.test is None else self.test

    @property
    def is_high(self) -> bool:
        """Whether the classifier predicts the class clearly better than chance."""
        return self.scored.low is not None and self.scored.low > 0.5 + MARGIN


@dataclass(frozen=True)
class Acquisition(Twin):
    """The classifier that knows all facts, and the one that knows no fact that depends on the image's content.

    Attributes
    ----------
    by_fact : dict
        The ROC AUC of each fact alone, on the images of `scored`. Empty where neither classifier is high.
    headers : Twin or None
        The classifier without the facts in `CONTENT`; None if there are no others, or if these are all.
    """

    by_fact: dict[str, float] = field(default_factory=dict)
    headers: Twin | None = None

    @property
    def of_headers(self) -> Twin | None:
        """The classifier that knows headers and columns only; None if there is none.

        Runs of earlier versions have one classifier, whose facts may include file sizes.
        """
        return self.headers or (None if content_of(self.facts).issuperset(self.facts) else self)

    def suspect(self, reached: float | None = None) -> Twin | None:
        """Return the classifier to warn of, if there is one.

        That is the classifier of headers if it is high, else the other one, if it is high and about as good as the head.
        `reached` is the head's ROC AUC; None if it is not known.
        """
        if self.of_headers is not None and self.of_headers.is_high:
            return self.of_headers
        is_close = reached is None or self.scored.value is None or reached - self.scored.value < CLOSE
        return self if self.is_high and is_close else None

    def meaning(self, reached: float | None = None) -> str:
        """Return what it means that the suspect is high; empty if there is none."""
        found = self.suspect(reached)
        return "" if found is None else MEANING if found is self.of_headers else MEANING_OF_CONTENT

    def warning(self, reached: float | None = None) -> str:
        """Return the message for the user, with the figures; empty if there is nothing to warn of."""
        found = self.suspect(reached)
        if found is None:
            return ""
        best = sorted(
            (name for name in self.by_fact if name in found.facts), key=self.by_fact.__getitem__, reverse=True
        )
        figures = ", ".join(f"{name} {self.by_fact[name]:.2f}" for name in best[:3])
        alone = f"; alone: {figures}" if figures else ""
        area = f"{found.scored.value:.2f} (95% CI {found.scored.low:.2f} to {found.scored.high:.2f}{alone})"
        sees = "sees no pixel, only" if found is self.of_headers else "does not look at the image, only at"
        return f"A classifier that {sees} {', '.join(found.facts)}, has a ROC AUC of {area}. {self.meaning(reached)}"
