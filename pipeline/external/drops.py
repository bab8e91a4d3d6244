"""From the internal test to the cohort: how much a figure drops, in all and in each site."""

from collections.abc import Mapping

from hoarfrost.evaluation import Estimate, Share, Subgroup, evaluate_threshold
from hoarfrost.evaluation.drops import drop_between
from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.evaluation.subgroups import MISSING
from hoarfrost.experiment.assessment import Fixed
from hoarfrost.external.frozen import run_units
from hoarfrost.runs import Assessment, Drop, HeadResult, Run
from hoarfrost.runs.external import ALL

SITES = ("site", "hospital", "center", "centre", "institution", "clinic", "scanner", "manufacturer", "vendor")
ACCURACY, SENSITIVITY, SPECIFICITY = "accuracy", "sensitivity", "specificity"
UNDEFINED = Estimate(None, None, None)


def site_column(attributes: Mapping[str, object], wanted: str | None) -> str:
    """Return the column whose values count as sites: the one that is wanted, or one that is named like a site."""
    if wanted is not None:
        return wanted
    by_name = {name.lower().replace("_", " ").strip(): name for name in reversed(list(attributes))}
    return next((by_name[name] for name in SITES if name in by_name), "")


def internal_figures(run: Run, head: str, fixed: Fixed) -> tuple[str, dict[str, Estimate]]:
    """Return what the internal figures are of, as a sentence, and the figures by metric.

    Those of the test split; or without one the ROC AUC of validated images, without an interval, because these also
    selected the head.
    """
    result, name = run.head(head), run.directory
    rows = run.rows_of("test")
    if result.test is None or not len(rows):
        words = (
            f"{name} has no test split. The internal figures are those of its {run.config.validation} predictions, which "
            "also selected the head. They are too high, and the drop has no interval."
        )
        return words, {ROC_AUC: result.val.auc}
    units = run_units(run, rows)
    found = {ROC_AUC: result.test.auc}
    p = units.joined(run.predictions.probabilities[head][rows])
    threshold = fixed.points[1][0].threshold if units.y.ndim == 1 and p.shape[1] == 2 else None
    if threshold is not None:
        at = evaluate_threshold(units.y, p[:, 1], threshold, groups=units.groups)
        found |= {SENSITIVITY: at.sensitivity, SPECIFICITY: at.specificity}
    else:
        found[ACCURACY] = result.test[ACCURACY]
    counted = "images" if units.how is None else "patients"
    return f"The internal figures are those of the {len(units.y):,} test {counted} of {name}.", found


def drops_of(
    internal: Mapping[str, Estimate], result: HeadResult, assessment: Assessment, column: str
) -> tuple[Drop, ...]:
    """Return the drop of each internal figure, of the whole cohort and of each of its sites."""
    whole = _external(result, assessment)
    found = [_drop(ALL, metric, figure, whole[metric], "") for metric, figure in internal.items() if metric in whole]
    sites = [one for one in assessment.subgroups if one.attribute == column and one.value != MISSING]
    for site in sites if len(sites) > 1 else ():
        of_site = _of_site(site)
        found += [
            _drop(site.value, metric, figure, of_site[metric], site.reason)
            for metric, figure in internal.items()
            if metric in of_site
        ]
    return tuple(found)


def _drop(site: str, metric: str, internal: Estimate, external: Estimate, reason: str) -> Drop:
    drop = drop_between(_plain(internal), _plain(external))
    return Drop(site, metric, _plain(internal), _plain(external), drop, reason)


def _external(result: HeadResult, assessment: Assessment) -> dict[str, Estimate]:
    assert result.test is not None
    found: dict[str, Estimate] = {ROC_AUC: result.test.auc}
    if ACCURACY in result.test:
        found[ACCURACY] = result.test[ACCURACY]
    if len(assessment.classes) == 1 and assessment.classes[0].points:
        at = assessment.classes[0].points[0].result
        if at is not None:
            found |= {SENSITIVITY: at.sensitivity, SPECIFICITY: at.specificity}
    return found


def _of_site(site: Subgroup) -> dict[str, Estimate]:
    shares: dict[str, Share | None] = {SENSITIVITY: site.sensitivity, SPECIFICITY: site.specificity}
    return {ROC_AUC: site.roc_auc} | {name: one or UNDEFINED for name, one in shares.items()}


def _plain(found: Estimate) -> Estimate:
    """Return a proportion as an estimate: without its counts."""
    return Estimate(found.value, found.low, found.high, found.method, found.n, found.n_patients)
