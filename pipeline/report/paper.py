"""The figures and tables of a run's report by name, for a paper."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import zip_longest

from hoarfrost.evaluation import (
    Comparison,
    DecisionCurve,
    Estimate,
    Metric,
    Scores,
    Share,
    ShownIn,
    Subgroup,
    metrics_of,
    registered,
)
from hoarfrost.evaluation.calibration_curve import N_SPIKES
from hoarfrost.evaluation.intervals import IntervalKind
from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.report.cohort import cohort_tables
from hoarfrost.report.covariates import covariate_table
from hoarfrost.report.evaluation import evaluation_of
from hoarfrost.report.explore import SHARES
from hoarfrost.report.figures import Figure, Forest
from hoarfrost.report.files import Table, Value
from hoarfrost.report.page import figures_of
from hoarfrost.report.variants import ranked
from hoarfrost.report.words import threshold_text
from hoarfrost.runs import Assessment, FixedPoint, HeadResult, Recalibration, ReferenceResult, Run
from hoarfrost.runs.external import Scale

ENDS = ("", "_low", "_high")
ABOUT = ("method", "n", "patients")
SHARE_ABOUT = ("_hits", *(f"_{name}" for name in ABOUT))
OTHERS = ("lr_positive", "lr_negative", "ppv_at_prevalence", "npv_at_prevalence")


def named_figures(run: Run) -> dict[str, Figure | Forest]:
    """Describe the figures of a run's report.

    Parameters
    ----------
    run : Run

    Returns
    -------
    dict of name -> Figure or Forest
        Those that the run has: "roc", "precision-recall", "areas", "learning curve", "instability", "training HEAD",
        "covariates", "calibration", "decision curve", "subgroups" and "sites held out"; with several labels per image, those
        of calibration and decision are numbered by label.
    """
    figures = figures_of(run)
    found: dict[str, Figure | Forest | None] = {
        "roc": figures.roc,
        "precision-recall": figures.precision,
        "areas": figures.areas,
        "learning curve": figures.learning,
        **_numbered("instability", figures.stability),
        **{f"training {name}": one for name, one in figures.training.items()},
        **_numbered("covariates", figures.covariates),
        **_numbered("calibration", figures.calibration),
        **_numbered("decision curve", figures.decision),
        "subgroups": figures.subgroups,
        "sites held out": figures.sites,
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _numbered(name: str, figures: tuple[Figure, ...]) -> dict[str, Figure]:
    return {name if len(figures) == 1 else f"{name} {i}": figure for i, figure in enumerate(figures, start=1)}


def tables_of(run: Run) -> dict[str, Table]:
    """Return the tables of a run's report, with all digits.

    Parameters
    ----------
    run : Run

    Returns
    -------
    dict of name -> Table
        Those that the run has: "characteristics", "flow", "heads", "classes", "comparisons", "counts",
        "cross-validation", "learning curve", "random splits", "sites held out", "views", "covariates", "operating points",
        "calibration",
        "calibration error", "net benefit", "subgroups", "subgroup calibration", "subgroup differences",
        "heterogeneity", "calibration curve", "calibration distances", "probabilities", "shortcuts",
        "near-duplicates" and "suspect labels".
    """
    found = {
        **cohort_tables(run),
        "heads": _heads(run),
        "classes": _classes(run),
        "comparisons": _comparisons(run),
        "counts": _counts(run),
        "cross-validation": _cross_validation(run),
        "learning curve": _learning_curve(run),
        "random splits": _random_splits(run),
        "sites held out": _left_out(run),
        "views": _views(run),
        "covariates": covariate_table(run),
        **(_assessment(run.assessment, run.scale_of(run.selected)) if run.assessment is not None else {}),
        "shortcuts": _shortcuts(run),
        "near-duplicates": _near_duplicates(run),
        "suspect labels": _suspects(run),
    }
    return {name: table for name, table in found.items() if table.rows}


def _heads(run: Run) -> Table:
    results: list[HeadResult | ReferenceResult] = [*ranked(run), *run.references]
    by_split = {"val": [one.val for one in results]}
    if evaluation_of(run).split == "test":
        by_split["test"] = [one.test for one in results if one.test is not None]
    metrics = metrics_of([scores for column in by_split.values() for scores in column], ShownIn.FILE)
    with_interval = [metric for metric in metrics if metric.interval is not IntervalKind.NONE]
    columns = tuple(
        f"{split}_{metric.key}{end}"
        for split in by_split
        for metric in metrics
        for end in (ENDS if metric in with_interval else ("",))
    )
    ends = ("n", "patients", *(f"{metric.key}_method" for metric in with_interval), "decided_by", "threshold")
    about_scores = tuple(f"{split}_{end}" for split in by_split for end in ends)
    rows: list[tuple[Value, ...]] = []
    for place, one in enumerate(results):
        about: tuple[Value, ...] = ("reference", *(None,) * 6)
        if isinstance(one, HeadResult):
            selected = "yes" if one.name == run.selected else "no"
            epochs = one.best_epoch, one.epochs
            about = (selected, one.n_parameters, *epochs, one.learning_rate, one.weight_decay, one.dropout)
        scored, scale = [column[place] for column in by_split.values()], run.scale_of(one.name)
        values = [value for scores in scored for value in _scores(scores, metrics)]
        methods = [value for scores in scored for value in _about_scores(scores, with_interval, scale)]
        rows.append((one.name, *about, *values, *methods))
    about_columns = ("parameters", "best_epoch", "epochs", "learning_rate", "weight_decay", "dropout")
    return Table(("head", "selected", *about_columns, *columns, *about_scores), tuple(rows))


def _scores(scores: Scores, metrics: Sequence[Metric]) -> Iterator[Value]:
    for metric in metrics:
        found = _ends(scores.printed(metric.key))
        yield from found[:1] if metric.interval is IntervalKind.NONE else found


def _about_scores(scores: Scores, metrics: Sequence[Metric], scale: Scale | None) -> Iterator[Value]:
    yield from (scores.n, scores.n_patients)
    yield from (getattr(scores.printed(metric.key), "method", None) for metric in metrics)
    yield scores.rule or None
    yield _own(scores.thresholds[0], scale) if len(scores.thresholds) == 1 else None


def _classes(run: Run) -> Table:
    """Return the selected head's metrics by class against the rest, or by label."""
    by_class = evaluation_of(run).scores(run.head(run.selected)).per_class
    metrics = [one for one in registered() if one.of_class is not None]
    rows = tuple(
        (name, metric.key, *_ends(scores.printed(metric.key)), *_about(scores.printed(metric.key)))
        for name, scores in by_class.items()
        for metric in metrics
    )
    return Table(("class", "metric", "value", "low", "high", *ABOUT), rows)


def _comparisons(run: Run) -> Table:
    columns = ("head", "compared_to", "difference", "low", "high", "p", "p_holm", "reason", *ABOUT)
    rows = tuple(
        (one.name, run.selected, *_ends(one.difference), one.p, one.p_holm, one.reason, *_about(one.difference))
        for one in run.comparisons
    )
    return Table(columns, rows)


def _counts(run: Run) -> Table:
    classes = run.config.dataset.classes
    rows = tuple(
        (size.split, size.n_images, size.n_patients, *(size.counts.get(label, 0) for label in classes))
        for size in run.split_sizes()
    )
    return Table(("split", "images", "patients", *classes), rows)


def _cross_validation(run: Run) -> Table:
    results = run.cross_validation.results if run.cross_validation is not None else ()
    n_folds = run.cross_validation.n_folds if run.cross_validation is not None else 0
    columns = ("head", "roc_auc", "low", "high", *(f"fold_{i + 1}_roc_auc" for i in range(n_folds)), *ABOUT)
    columns += ("difference", "difference_low", "difference_high", "p", "p_holm")
    pooled = [one.pooled.printed(ROC_AUC) for one in results]
    rows = tuple(
        (one.name, *_ends(area), *one.fold_roc_aucs, *_about(area), *_tested(one.difference))
        for one, area in zip(results, pooled, strict=True)
    )
    return Table(columns, rows)


def _views(run: Run) -> Table:
    rows = tuple(
        (
            ", ".join(one.views),
            one.work,
            one.roc_auc,
            one.loss,
            *_ends(one.difference),
            one.n_chosen,
            *_about(one.difference),
        )
        for one in (run.views.results if run.views is not None else ())
    )
    return Table(("views", "work", "roc_auc", "loss", "difference", "low", "high", "chosen", *ABOUT), rows)


def _tested(found: Comparison | None) -> tuple[float | None, ...]:
    return (None,) * 5 if found is None else (*_ends(found.difference), found.p, found.p_holm)


def _learning_curve(run: Run) -> Table:
    rows = tuple(
        (point.share, point.n_patients, point.n_images, number, area)
        for point in run.learning_curve
        for number, area in enumerate(point.roc_aucs, start=1)
    )
    return Table(("share", "patients", "images", "draw", "roc_auc"), rows)


def _random_splits(run: Run) -> Table:
    found = run.repeats
    pairs = [] if found is None else zip(found.roc_aucs, found.selected, strict=True)
    rows = tuple((number, area, selected) for number, (area, selected) in enumerate(pairs, start=1))
    return Table(("split", "roc_auc", "selected"), rows)


def _left_out(run: Run) -> Table:
    columns = *_named(("held_out", "mixed"), ENDS), "selected", "reason", *ABOUT
    rows = tuple(
        (one.site, one.n, *_ends(one.held_out), *_ends(one.mixed), one.selected, one.reason, *_about(one.held_out))
        for one in (() if run.left_out is None else run.left_out.sites)
    )
    return Table(("site", "images", *columns), rows)


# -- how far it can be believed -----------------------------------------------------------------------------------------


def _assessment(found: Assessment, scale: Scale | None) -> dict[str, Table]:
    points = tuple((one.name, *_point(point, scale)) for one in found.classes for point in one.points)
    calibrations = [("", found.calibration), *((one.name, one.calibration) for one in found.classes)]
    bins = tuple(row for name, one in calibrations if one is not None for row in _bins(name, one))
    benefit = tuple(row for one in found.classes for row in _benefit(one.name, one.net_benefit))
    errors = tuple(row for name, one in calibrations if one is not None for row in _calibration_errors(name, one))
    error_columns = ("class", "temperature", "error", "low", "high", "by_chance", "method")
    point_columns = (
        "class",
        "rule",
        "threshold",
        *_named(SHARES, ENDS),
        *_named(SHARES, SHARE_ABOUT),
        *_named(OTHERS, ENDS),
    )
    bin_columns = ("class", "temperature", "lowest", "highest", "confidence", "observed", "low", "high", "n", "method")
    group_columns = (
        *("attribute", "value", "n", "roc_auc", "low", "high", "interval", "sensitivity", "specificity", "reason"),
        *("patients", *_named(SHARES[:2], (*ENDS[1:], *SHARE_ABOUT))),
    )
    return {
        "operating points": Table((*point_columns, "prevalence"), points),
        "calibration": Table(bin_columns, bins),
        "calibration error": Table(error_columns, errors),
        "net benefit": Table(("class", "threshold", "net_benefit", "treat_all", "low", "high", "method"), benefit),
        "subgroups": Table(group_columns, tuple(map(_group, found.subgroups))),
        **_subgroup_tables(found),
        **_curve_tables(calibrations),
    }


def _subgroup_tables(found: Assessment) -> dict[str, Table]:
    """Return the tables of calibration by subgroup, of differences between subgroups, and of their tests."""
    lines = (
        (
            *(one.attribute, one.value, *_ends(one.observed_expected), one.line.slope),
            *(*(one.line.slope_interval or (None, None)), one.line.intercept),
            *(one.line.intercept_interval or (None, None)),
            *(one.line.reason or one.line.why_no_interval, *_about(one.observed_expected)),
        )
        for one in found.subgroup_calibration
    )
    named = _named(("observed_expected", "slope", "intercept"), ENDS)
    differences = (
        (one.attribute, one.figure, one.value, one.reference, *_ends(one.difference), one.difference.method)
        for one in found.subgroup_differences
    )
    tests = (
        (one.attribute, one.figure, ", ".join(one.values), one.f, one.p, one.p_holm, one.reason)
        for one in found.heterogeneity
    )
    of_differences = ("attribute", "figure", "value", "compared_to", "difference", "low", "high", "method")
    return {
        "subgroup calibration": Table(("attribute", "value", *named, "reason", *ABOUT), tuple(lines)),
        "subgroup differences": Table(of_differences, tuple(differences)),
        "heterogeneity": Table(("attribute", "figure", "values", "f", "p", "p_holm", "reason"), tuple(tests)),
    }


def _curve_tables(calibrations: Sequence[tuple[str, Recalibration | None]]) -> dict[str, Table]:
    """Return the points of smooth calibration curves, their distances from perfect calibration, and the distributions."""
    curves = [
        (name, temperature, one.curve)
        for name, found in calibrations
        for temperature, one in (() if found is None else found.both)
        if one.curve is not None
    ]
    points = (
        (name, temperature, *point)
        for name, temperature, curve in curves
        for point in zip_longest(curve.p, curve.observed, curve.low, curve.high)  # without a band the ends are empty
    )
    distances = (
        (name, temperature, measure, *_ends(one), *_about(one))
        for name, temperature, curve in curves
        for measure, one in (("ICI", curve.ici), ("E50", curve.e50), ("E90", curve.e90))
        if one is not None
    )
    spikes = (
        (name, temperature, place / N_SPIKES, *counts)
        for name, temperature, curve in curves
        for place, counts in enumerate(zip(curve.without, curve.with_outcome, strict=True))
    )
    about = ("class", "temperature")
    return {
        "calibration curve": Table((*about, "probability", "observed", "low", "high"), tuple(points)),
        "calibration distances": Table((*about, "measure", "value", "low", "high", *ABOUT), tuple(distances)),
        "probabilities": Table((*about, "from", "without", "with"), tuple(spikes)),
    }


def _named(names: Sequence[str], ends: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}{end}" for name in names for end in ends)


def _own(threshold: float | None, scale: Scale | None) -> float | None:
    return threshold if threshold is None or scale is None else scale.own(threshold)


def _point(fixed: FixedPoint, scale: Scale | None) -> tuple[Value, ...]:
    result = fixed.result
    shares: list[Share | None] = [getattr(result, name, None) for name in SHARES]
    there = None if result is None else result.at_prevalence
    others: list[Estimate | None] = [getattr(result, name, None) for name in OTHERS[:2]]
    others += [None, None] if there is None else [there.ppv, there.npv]
    values = [value for one in shares for value in _ends(one)] + [
        value for one in shares for value in _about_share(one)
    ]
    values += [value for one in others for value in _ends(one)]
    name, threshold = fixed.point.name, _own(fixed.point.threshold, scale)
    if fixed.by_fold:  # one threshold in the column would look as if it had made the counts
        name, threshold = f"{name}, {fixed.at(partial(threshold_text, scale=scale))}", None
    return name, threshold, *values, None if there is None else there.prevalence


def _group(one: Subgroup) -> tuple[Value, ...]:
    shares = (one.sensitivity, one.specificity)
    return (
        *(one.attribute, one.value, one.n, *_ends(one.roc_auc), one.roc_auc.method),
        *(None if share is None else share.value for share in shares),
        *(one.reason, one.roc_auc.n_patients),
        *(value for share in shares for value in (*_ends(share)[1:], *_about_share(share))),
    )


def _ends(found: Estimate | None) -> tuple[float | None, float | None, float | None]:
    """Return an estimate's value and both ends of its interval."""
    return (None, None, None) if found is None else (found.value, found.low, found.high)


def _about(found: Estimate | None) -> tuple[Value, Value, Value]:
    """Return the method of an estimate's interval, and its samples and patients."""
    return (None, None, None) if found is None else (found.method, found.n, found.n_patients)


def _about_share(found: Share | None) -> tuple[Value, ...]:
    return (None,) * len(SHARE_ABOUT) if found is None else (found.n_hits, *_about(found))


def _benefit(name: str, found: DecisionCurve | None) -> Iterator[tuple[Value, ...]]:
    if found is None:
        return
    unknown = (None,) * len(found.thresholds)
    columns = (found.thresholds, found.net_benefit, found.treat_all, found.low or unknown, found.high or unknown)
    yield from ((name, *row, found.method) for row in zip(*columns, strict=True))


def _calibration_errors(name: str, found: Recalibration) -> Iterator[tuple[Value, ...]]:
    for temperature, one in found.both:
        yield name, temperature, one.error, *(one.error_interval or (None, None)), one.error_by_chance, one.error_method


def _bins(name: str, found: Recalibration) -> tuple[tuple[Value, ...], ...]:
    return tuple(
        (
            *(name, temperature, one.lowest, one.highest, one.confidence),
            *(*_ends(one.observed), one.observed.n, one.observed.method),
        )
        for temperature, calibration in found.both
        for one in calibration.bins
    )


def _shortcuts(run: Run) -> Table:
    rows = tuple(
        (
            *(one.name, one.roc_auc, getattr(one.association, "cramers_v", None), getattr(one.association, "p", None)),
            *("yes" if one.is_shortcut else "no", one.reason),
        )
        for one in run.shortcuts
    )
    return Table(("attribute", "roc_auc", "cramers_v", "p", "shortcut", "reason"), rows)


def _near_duplicates(run: Run) -> Table:
    pairs = run.leakage.near_duplicates if run.leakage is not None else ()
    rows = tuple((one.first, one.first_split, one.second, one.second_split, one.cosine) for one in pairs)
    return Table(("first", "first_split", "second", "second_split", "cosine"), rows)


def _suspects(run: Run) -> Table:
    images = run.suspects.images if run.suspects is not None else ()
    rows = tuple((one.path, one.split, one.label, one.predicted, one.p_label, one.p_predicted) for one in images)
    return Table(("path", "split", "label", "predicted", "p_label", "p_predicted"), rows)
