"""What images add to clinical data: the models side by side, their differences, and their decision curves."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation.added_value import CLINICAL, Gain, ModelScores
from hoarfrost.report.evaluation import Evaluation
from hoarfrost.report.figures import Axis, Curve, Figure, Panel, nice_ticks, share_axis
from hoarfrost.report.files import Table, Value
from hoarfrost.report.simulated import OF_GAINS, simulated
from hoarfrost.report.words import decimal, estimate_text, listed, p_text, several
from hoarfrost.runs import AddedValue, CovariateFacts, Run, in_words

LOWEST_BENEFIT = -0.05
STATED = (
    "The models with clinical data are logistic regressions with an L2 penalty. The model with both takes the clinical data "
    "and one score of the images: the logit of the selected head's probability, predicted by heads that did not learn from "
    "the image. Everything, from imputation to weights, was fitted without the images that are scored."
)


@dataclass(frozen=True)
class ModelRow:
    """One model, or one difference, as text."""

    name: str
    roc_auc: str
    p: str
    net_benefit: str


@dataclass(frozen=True)
class AddedSection:
    """One comparison: the sentence on it, what it was scored on, and its rows."""

    where: str
    verdict: str
    scored: str
    models: tuple[ModelRow, ...]
    gains: tuple[ModelRow, ...]
    threshold: str


@dataclass(frozen=True)
class CovariatesSection:
    """What the report says of covariates: the columns, each comparison, and how often its intervals held in simulations."""

    columns: str
    results: tuple[AddedSection, ...]
    coverage: str
    stated: str = STATED


def covariates_section(run: Run, evaluation: Evaluation) -> CovariatesSection | None:
    """Return what the report says of covariates; None without any."""
    found = run.covariates
    if found is None:
        return None
    kinds = [_kind(one) for one in found.columns]
    methods = [one.roc_auc.method for each in found.results for one in each.gains]
    return CovariatesSection(
        f"Clinical data: {listed(kinds, len(kinds))}.",
        tuple(map(_section, found.results)),
        simulated(methods, OF_GAINS, evaluation),
    )


def _kind(one: CovariateFacts) -> str:
    kind = "a number" if one.n_levels is None else f"{one.n_levels} categories"
    missing = f", missing in {several(one.n_missing, 'image')}" if one.n_missing else ""
    return f"{one.name} ({kind}{missing})"


def _section(found: AddedValue) -> AddedSection:
    models = tuple(
        ModelRow(in_words(one.name), estimate_text(one.roc_auc), "", estimate_text(one.net_benefit))
        for one in found.models
    )
    differences = tuple(
        ModelRow(
            f"both, minus {in_words(one.over)}", estimate_text(one.roc_auc), p_text(one.p_holm),
            estimate_text(one.net_benefit),
        )
        for one in found.gains
    )  # fmt: skip
    on_average = ", on average" if found.n_folds > 1 else ""
    scored = (
        f"{several(found.n, 'sample')}. The models with clinical data were fitted on {several(found.n_fitted, 'image')}"
    )
    median = " (median of the folds)" if found.n_folds > 1 else ""
    threshold = "" if found.threshold is None else f"{decimal(found.threshold)}{median}"
    return AddedSection(found.where, found.verdict, f"{scored}{on_average}", models, differences, threshold)


def covariate_figures(run: Run) -> tuple[Figure, ...]:
    """Describe the decision curves of the models, of each comparison that has them."""
    results = () if run.covariates is None else run.covariates.results
    return tuple(_curves(one) for one in results if one.curves)


def _curves(found: AddedValue) -> Figure:
    first = found.curves[CLINICAL]
    at = np.array(first.thresholds)
    curves = [
        Curve(in_words(name), at, np.array(one.net_benefit), series=place, strong=not place)
        for place, (name, one) in enumerate(reversed(tuple(found.curves.items())))
    ]
    curves.append(Curve("treat all", at, np.array(first.treat_all), series=4))
    curves.append(Curve("treat none", np.array([0.0, 1.0]), np.zeros(2), series=5))
    high = max(first.prevalence, *(value for one in found.curves.values() for value in one.net_benefit)) * 1.1
    y = Axis("net benefit", LOWEST_BENEFIT, high, nice_ticks(LOWEST_BENEFIT, high))
    message = f"Decision curves on {found.where}, prevalence {decimal(first.prevalence)}."
    return Figure(message, (Panel(share_axis("threshold probability"), y, tuple(curves), mark=found.threshold),))


def covariate_table(run: Run) -> Table:
    """Return the models and their differences with all digits."""
    results = () if run.covariates is None else run.covariates.results
    columns = ("scored", "what", "roc_auc", "low", "high", "p", "p_holm", "net_benefit", "net_benefit_low")
    return Table((*columns, "net_benefit_high", "threshold"), tuple(row for one in results for row in _rows(one)))


def _rows(found: AddedValue) -> Iterator[tuple[Value, ...]]:
    tests = {f"both minus {one.over}": one for one in found.gains}
    rows: dict[str, ModelScores | Gain] = {**{one.name: one for one in found.models}, **tests}
    for name, one in rows.items():
        area, benefit = one.roc_auc, one.net_benefit
        p, p_holm = (tests[name].p, tests[name].p_holm) if name in tests else (None, None)
        ends = (None, None, None) if benefit is None else (benefit.value, benefit.low, benefit.high)
        yield found.basis, name, area.value, area.low, area.high, p, p_holm, *ends, found.threshold


def covariates_methods(run: Run) -> Iterator[str]:
    """Yield how the models with covariates were fitted and compared."""
    found = run.covariates
    if found is None:
        return
    yield (
        f"To measure what images add to clinical data ({found.names}), three models were compared on the same images: "
        "clinical data only, images only (the selected head), and both. The first and the last were logistic regressions "
        "with an L2 penalty (C = 1, standardised features); the last took the clinical data and the logit of the head's "
        "out-of-fold probability (stacking, Wolpert 1992). Medians for missing numbers, indicators of missing values, "
        "categories, means and standard deviations were taken from the images that the models were fitted on."
    )
    inflated = any(one.n_folds > 1 for one in found.results)
    yield (
        "Differences in ROC AUC and in net benefit at the head's calibrated threshold (Vickers and Elkin 2006) are paired, "
        f"with 95% intervals{' whose variance allows for folds (Nadeau and Bengio 2003)' if inflated else ''}; p values are "
        "corrected by Holm's method (Holm 1979)."
    )
