"""The figures and tables of a run's report by name, for a paper."""

from collections.abc import Iterator, Sequence

from hoarfrost.evaluation import Estimate, Metric, Scores, Share, ShownIn, metrics_of
from hoarfrost.evaluation.intervals import IntervalKind, SharePlace, share_at
from hoarfrost.report.evaluation import evaluation_of
from hoarfrost.report.explore import SHARES
from hoarfrost.report.figures import Figure, Forest
from hoarfrost.report.files import Table, Value
from hoarfrost.report.page import figures_of
from hoarfrost.report.variants import ranked
from hoarfrost.runs import Assessment, FixedPoint, HeadResult, Recalibration, ReferenceResult, Run


def named_figures(run: Run) -> dict[str, Figure | Forest]:
    """Describe the figures of a run's report.

    Parameters
    ----------
    run : Run

    Returns
    -------
    dict of name -> Figure or Forest
        Those that the run has: "roc", "precision-recall", "areas", "learning curve", "training HEAD", "calibration",
        "decision curve" and "subgroups"; with several labels per image, the last three numbered by label.
    """
    figures = figures_of(run)
    found: dict[str, Figure | Forest | None] = {
        "roc": figures.roc,
        "precision-recall": figures.precision,
        "areas": figures.areas,
        "learning curve": figures.learning,
        **{f"training {name}": one for name, one in figures.training.items()},
        **_numbered("calibration", figures.calibration),
        **_numbered("decision curve", figures.decision),
        "subgroups": figures.subgroups,
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
        Those that the run has: "heads", "comparisons", "counts", "cross-validation", "learning curve", "operating
        points", "calibration", "net benefit", "subgroups", "shortcuts", "near-duplicates" and "suspect labels".
    """
    found = {
        "heads": _heads(run),
        "comparisons": _comparisons(run),
        "counts": _counts(run),
        "cross-validation": _cross_validation(run),
        "learning curve": _learning_curve(run),
        **(_assessment(run.assessment) if run.assessment is not None else {}),
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
    metrics = metrics_of([scores for column in by_split.values() for scores in column], ShownIn.WIDE)
    columns = tuple(
        f"{split}_{metric.key}{end}"
        for split in by_split
        for metric in metrics
        for end in (("",) if metric.interval is IntervalKind.NONE else ("", "_low", "_high"))
    )
    rows: list[tuple[Value, ...]] = []
    for place, one in enumerate(results):
        about: tuple[Value, ...] = ("reference", *(None,) * 6)
        if isinstance(one, HeadResult):
            selected = "yes" if one.name == run.selected else "no"
            epochs = one.best_epoch, one.epochs
            about = (selected, one.n_parameters, *epochs, one.learning_rate, one.weight_decay, one.dropout)
        values = [value for column in by_split.values() for value in _scores(column[place], metrics)]
        rows.append((one.name, *about, *values))
    about_columns = ("parameters", "best_epoch", "epochs", "learning_rate", "weight_decay", "dropout")
    return Table(("head", "selected", *about_columns, *columns), tuple(rows))


def _scores(scores: Scores, metrics: Sequence[Metric]) -> Iterator[Value]:
    for metric in metrics:
        found = _ends(scores.estimates.get(metric.key))
        yield from found[:1] if metric.interval is IntervalKind.NONE else found


def _comparisons(run: Run) -> Table:
    columns = ("head", "compared_to", "difference", "low", "high", "p", "p_holm", "reason")
    rows = tuple(
        (one.name, run.selected, *_ends(one.difference), one.p, one.p_holm, one.reason) for one in run.comparisons
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
    columns = ("head", "roc_auc", "low", "high", *(f"fold_{i + 1}_roc_auc" for i in range(n_folds)))
    rows = tuple((one.name, *_ends(one.pooled.auc), *one.fold_roc_aucs) for one in results)
    return Table(columns, rows)


def _learning_curve(run: Run) -> Table:
    rows = tuple(
        (point.share, point.n_patients, point.n_images, number, area)
        for point in run.learning_curve
        for number, area in enumerate(point.roc_aucs, start=1)
    )
    return Table(("share", "patients", "images", "draw", "roc_auc"), rows)


# -- how far it can be believed -----------------------------------------------------------------------------------------


def _assessment(found: Assessment) -> dict[str, Table]:
    share_columns = tuple(f"{name}{end}" for name in SHARES for end in ("", "_low", "_high"))
    points = tuple((one.name, *_point(point)) for one in found.classes for point in one.points)
    calibrations = [("", found.calibration), *((one.name, one.calibration) for one in found.classes)]
    bins = tuple(row for name, one in calibrations if one is not None for row in _bins(name, one))
    benefit = tuple(
        (one.name, *row)
        for one in found.classes
        for row in zip(one.net_benefit.thresholds, one.net_benefit.net_benefit, one.net_benefit.treat_all, strict=True)
    )
    groups = tuple(
        (
            *(group.attribute, group.value, group.n, *_ends(group.roc_auc), group.roc_auc.method),
            *(None if share is None else share.value for share in (group.sensitivity, group.specificity)),
            group.reason,
        )
        for group in found.subgroups
    )
    bin_columns = ("class", "temperature", "lowest", "highest", "confidence", "observed", "low", "high", "n")
    group_columns = (
        "attribute",
        "value",
        "n",
        "roc_auc",
        "low",
        "high",
        "interval",
        "sensitivity",
        "specificity",
        "reason",
    )
    return {
        "operating points": Table(("class", "rule", "threshold", *share_columns), points),
        "calibration": Table(bin_columns, bins),
        "net benefit": Table(("class", "threshold", "net_benefit", "treat_all"), benefit),
        "subgroups": Table(group_columns, groups),
    }


def _point(fixed: FixedPoint) -> tuple[Value, ...]:
    shares: list[Share | None] = [getattr(fixed.result, name, None) for name in SHARES]
    printed = (None if one is None else share_at(one, SharePlace.PAPER_TABLE) for one in shares)
    return fixed.point.name, fixed.point.threshold, *(value for one in printed for value in _ends(one))


def _ends(found: Estimate | None) -> tuple[float | None, float | None, float | None]:
    """Return an estimate's value and both ends of its interval."""
    return (None, None, None) if found is None else (found.value, found.low, found.high)


def _bins(name: str, found: Recalibration) -> tuple[tuple[Value, ...], ...]:
    return tuple(
        (
            *(name, temperature, one.lowest, one.highest, one.confidence),
            *(*_ends(one.observed), one.observed.n),
        )
        for temperature, calibration in ((1.0, found.before), (found.temperature.temperature, found.after))
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
