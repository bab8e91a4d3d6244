"""What images add to covariates: models with and without them, compared on the same samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hoarfrost.evaluation.checks import Bools, Floats, Ints
from hoarfrost.evaluation.comparison import compare_heads, holm
from hoarfrost.evaluation.decision import DecisionCurve, decision_curve, net_benefit
from hoarfrost.evaluation.discrimination import macro_roc_auc
from hoarfrost.evaluation.estimates import Estimate
from hoarfrost.evaluation.intervals import IntervalKind, area, linearised, pooled_area, variance_inflation
from hoarfrost.evaluation.units import count_patients

CLINICAL, IMAGES, BOTH = "clinical", "images", "both"
MODELS = (CLINICAL, IMAGES, BOTH)


@dataclass(frozen=True)
class ModelScores:
    """One model: its ROC AUC, and its net benefit at the threshold probability, None where there is no threshold."""

    name: str
    roc_auc: Estimate
    net_benefit: Estimate | None


@dataclass(frozen=True)
class Gain:
    """The model with both minus the one named `over`, on the same samples: ROC AUC and net benefit.

    `p` is that of the paired test of ROC AUCs, and `p_holm` corrected for both comparisons; None where it is undefined.
    """

    over: str
    roc_auc: Estimate
    p: float | None
    p_holm: float | None
    net_benefit: Estimate | None


@dataclass(frozen=True)
class Scored:
    """Samples with the three models' predictions.

    Attributes
    ----------
    y : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 (unknown)
    groups : ndarray (n,) int64 or None
        Patients.
    probabilities : mapping of ndarray (n, C) float64
        By the names in `MODELS`.
    likely : mapping of ndarray (n,) float64
        Calibrated probabilities of class 1; empty where no threshold is given.
    thresholds : ndarray (n,) float64
        The calibrated probability from which each sample's patient would be treated.
    """

    y: Ints
    groups: Ints | None
    probabilities: Mapping[str, Floats]
    likely: Mapping[str, Floats]
    thresholds: Floats


def model_scores(scored: Scored, *, n_folds: int = 1, prevalence: float | None = None) -> tuple[ModelScores, ...]:
    """Return the scores of each model, with 95% intervals.

    Parameters
    ----------
    scored : Scored
    n_folds : int
        Number of folds whose models predicted the samples; 1 if each model predicted them all.
    prevalence : float, optional
        Of class 1 where the decision is made.
    """
    inflation = 1.0 if n_folds < 2 else variance_inflation(n_folds)
    found = []
    for name in MODELS:
        p = scored.probabilities[name]
        plain = Estimate(macro_roc_auc(scored.y, p), None, None, n=len(p), n_patients=count_patients(scored.groups))
        by_area = (
            area(plain, scored.y, p, scored.groups)
            if n_folds < 2
            else pooled_area(plain, scored.y, p, scored.groups, inflation)
        )
        benefit = _benefits(scored, prevalence).get(name)
        own = None if benefit is None else _estimate(*benefit, scored.groups, inflation)
        found.append(ModelScores(name, by_area, own))
    return tuple(found)


def gains(scored: Scored, *, n_folds: int = 1, prevalence: float | None = None) -> tuple[Gain, ...]:
    """Compare the model with both with each of the others, by paired differences; see `model_scores`.

    Raises
    ------
    ValueError
        If a class is missing.

    Notes
    -----
    Of ROC AUCs by `hoarfrost.evaluation.compare_heads`, of net benefits by each sample's influence on the difference; with
    patients of several samples, variances are those of sums over patients.
    """
    inflation = 1.0 if n_folds < 2 else variance_inflation(n_folds)
    benefits, found = _benefits(scored, prevalence), []
    for name in (CLINICAL, IMAGES):
        pair = {BOTH: scored.probabilities[BOTH], name: scored.probabilities[name]}
        (of_area,) = compare_heads(scored.y, pair, name, groups=scored.groups, n_folds=n_folds)
        of_benefit = None
        if benefits:
            (ours, by_us), (theirs, by_them) = benefits[BOTH], benefits[name]
            of_benefit = _estimate(ours - theirs, by_us - by_them, scored.groups, inflation)
        found.append(Gain(name, of_area.difference, of_area.p, None, of_benefit))
    corrected = iter(holm([one.p for one in found if one.p is not None]).tolist())
    return tuple(one if one.p is None else replace(one, p_holm=next(corrected)) for one in found)


def decision_curves(scored: Scored, *, prevalence: float | None = None) -> dict[str, DecisionCurve]:
    """Return the decision curve of each model, without intervals; none where no threshold is given."""
    return {
        name: replace(decision_curve(scored.y, p, prevalence=prevalence), low=(), high=(), method="")
        for name, p in scored.likely.items()
    }


def joined(parts: Sequence[Scored]) -> Scored:
    """Return the samples of several folds as one; no patient is in two."""
    groups = [one.groups for one in parts if one.groups is not None]
    return Scored(
        np.concatenate([one.y for one in parts]),
        np.concatenate(groups) if groups else None,
        {name: np.concatenate([one.probabilities[name] for one in parts]) for name in MODELS},
        {name: np.concatenate([one.likely[name] for one in parts]) for name in MODELS if all(p.likely for p in parts)},
        np.concatenate([one.thresholds for one in parts]),
    )


def _benefits(scored: Scored, prevalence: float | None) -> dict[str, tuple[float, Floats]]:
    """Return the net benefit of each model at the threshold, and each sample's influence on it."""
    at = scored.thresholds
    treated: dict[str, Bools] = {name: p >= at for name, p in scored.likely.items()}
    return {name: net_benefit(scored.y, one, at / (1 - at), prevalence) for name, one in treated.items()}


def _estimate(value: float, influence: Floats, groups: Ints | None, inflation: float) -> Estimate:
    plain = Estimate(value, None, None, n=len(influence), n_patients=count_patients(groups))
    return linearised(plain, IntervalKind.BENEFIT, influence, groups, inflation=inflation)
