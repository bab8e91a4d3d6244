"""What a run records of covariates: the columns, and what images add to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hoarfrost.evaluation.added_value import BOTH, CLINICAL, Gain, ModelScores
from hoarfrost.evaluation.comparison import NO_INTERVAL
from hoarfrost.evaluation.decision import DecisionCurve


@dataclass(frozen=True)
class CovariateFacts:
    """One column: how many levels it has, None for numbers, and in how many images it is missing.

    `caution` states that it predicts the label perfectly; empty if it does not.
    """

    name: str
    n_levels: int | None
    n_missing: int
    caution: str = ""


@dataclass(frozen=True)
class AddedValue:
    """The models with covariates, with images and with both, on the same images.

    Attributes
    ----------
    basis : str
        "test", or "folds": the pooled predictions of nested cross-validation.
    n_folds : int
        1 on the test split.
    n_fitted : int
        Images that the models with covariates were fitted on; of folds, on average.
    n : int
        Images, or patients, that are scored.
    models : tuple of ModelScores
    gains : tuple of Gain
        Empty, with a `reason`, where nothing could be compared.
    threshold : float or None
        The probability from which a patient would be treated: the calibrated primary operating point of the images' head;
        of folds, the median. None where there is no one threshold.
    curves : mapping of str to DecisionCurve
        By model; empty without a threshold.
    """

    basis: str
    n_folds: int
    n_fitted: int
    n: int
    models: tuple[ModelScores, ...]
    gains: tuple[Gain, ...]
    threshold: float | None = None
    curves: Mapping[str, DecisionCurve] = field(default_factory=dict)
    reason: str = ""

    def model(self, name: str) -> ModelScores:
        """Return the scores of one model by its name."""
        return next(one for one in self.models if one.name == name)

    @property
    def verdict(self) -> str:
        """Whether images add to the covariates, as one sentence."""
        found = next((one.roc_auc for one in self.gains if one.over == CLINICAL), None)
        if found is None or found.value is None or found.low is None or found.high is None:
            return f"Whether images add to the clinical data could not be estimated: {self.reason or NO_INTERVAL}."
        text = f"{found.value:+.3f} (95% CI {found.low:+.3f} to {found.high:+.3f})"
        if found.low > 0:
            return f"Images add to the clinical data: the ROC AUC changes by {text}."
        if found.high < 0:
            return f"Images make the clinical model worse: the ROC AUC changes by {text}."
        return f"It is not shown that images add to the clinical data: the ROC AUC changes by {text}."

    @property
    def where(self) -> str:
        """What was scored: follows "on"."""
        return "the test split" if self.basis == "test" else f"the pooled predictions of {self.n_folds} folds"


@dataclass(frozen=True)
class Covariates:
    """The covariates of a run, and what images add to them: on the test split, and in folds, where there are any."""

    columns: tuple[CovariateFacts, ...]
    results: tuple[AddedValue, ...]

    @property
    def names(self) -> str:
        """The columns, in words."""
        return ", ".join(one.name for one in self.columns)


def images_alone(names: Sequence[str]) -> list[str]:
    """Return what to know of a head's predictions, if its run has covariates."""
    if not names:
        return []
    return [f"The run compared its heads with covariates ({', '.join(names)}). Heads predict from the images alone."]


def in_words(name: str) -> str:
    """Return a model's name as texts have it."""
    return {CLINICAL: "clinical data only", BOTH: "clinical data and images"}.get(name, "images only")
