"""What `train` tells: heads, intervals, thresholds, folds."""

from typing import TYPE_CHECKING

from hoarfrost.cli.console.lines import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hoarfrost.evaluation import Estimate, Metric, Scores
    from hoarfrost.runs import Assessment, CrossValidation, FixedPoint, HeadResult, ReferenceResult, Run

SHOWN_HEADS = 20  # in a table


def train_text(run: "Run") -> str:
    """Describe a run: the table of heads, and which one validation selected."""
    from hoarfrost.experiment.splits import rule_named

    split = "test" if run.heads[0].test is not None else "val"
    shown = sorted(run.heads, key=lambda head: (head.name != run.selected, -_area(head.val)))[:SHOWN_HEADS]
    lines = _heads_table(run, shown, split)
    if len(run.heads) > len(shown):
        lines.append(f"and {len(run.heads) - len(shown):,} more heads, which validation finds worse, in metrics.json")
    lines += _cross_validation_lines(run.cross_validation)
    lines += _learning_curve_lines(run, split)
    lines += _label_lines(run, split)
    lines += _interval_lines(run, split)
    lines += _assessment_lines(run.assessment)
    lines += [f"{head.name}: {alarm}" for head in shown for alarm in head.alarms]
    n_train = run.config.dataset.n_split["train"]
    if run.references and run.references[0].n_train < n_train:
        lines.append(f"the references are fitted on {run.references[0].n_train:,} of the {n_train:,} training images")
    counts = ", ".join(f"{n:,} {name}" for name, n in run.config.dataset.n_split.items())
    lines.append(
        f"* selected by validation ROC AUC{_over_seeds(run.config.seeds)}; {counts} images, "
        f"split {rule_named(run.config.dataset.split_by).brief}"
    )
    if run.config.per_patient is not None:
        lines.append(f"scores are of patients, by the {run.config.per_patient} of their images' probabilities")
    if split == "val":
        lines.append("There is no test split: these are validation figures, and they flatter the selected head.")
    lines.append(f"run {run.directory}")
    return "\n".join(lines)


def _label_lines(run: "Run", split: str) -> list[str]:
    """Describe the selected head's area by label, where an image may have several."""
    if not run.config.dataset.is_multilabel:
        return []
    head = run.head(run.selected)
    lines = [f"{head.name}, {split} ROC AUC by label (95% interval):"]
    lines += [
        f"  {label}: {_estimate_text(one.auc)}, known of {one.auc.n:,} images"
        for label, one in _scores_of(head).per_class.items()
    ]
    return lines


def _interval_lines(run: "Run", split: str) -> list[str]:
    """Give the selected head's other interval where DeLong's covers too seldom."""
    head = run.head(run.selected)
    why = "of few cases, or near one, DeLong's interval is too narrow"
    return [
        f"{head.name}, {split} AUC: {why}; {second.method}'s is {second.low:.3f} to {second.high:.3f}"
        for second in _scores_of(head).beside.values()
    ]


def _assessment_lines(found: "Assessment | None") -> list[str]:
    """Describe what thresholds that validation fixed do, and the calibration, where there is one positive class."""
    if found is None or len(found.classes) > 1:
        return []
    lines = [f"{found.head} on {found.split}, thresholds fixed on val (95% intervals):"]
    lines += [f"  {text}" for point in found.classes[0].points for text in _point_lines(point)]
    if found.calibration is not None:
        before, after = found.calibration.before, found.calibration.after
        lines.append(
            f"calibration error {before.error:.3f}; {after.error:.3f} after a temperature of "
            f"{found.calibration.temperature.temperature:.2f} (perfectly calibrated probabilities: "
            f"{after.error_by_chance:.3f} by chance)"
        )
    return lines


def _point_lines(fixed: "FixedPoint") -> list[str]:
    point, result = fixed.point, fixed.result
    if result is None:
        return [f"{point.name}: {point.reason}"]
    shares = {
        "sensitivity": result.sensitivity,
        "specificity": result.specificity,
        "PPV": result.ppv,
        "NPV": result.npv,
    }
    texts = [f"{name} {_estimate_text(one)}" for name, one in shares.items()]
    lines = [f"{point.name}, from {result.threshold:.3f} on: {', '.join(texts)}"]
    there = result.at_prevalence
    if there is not None:
        values = [f"{word} {_estimate_text(one)}" for word, one in (("PPV", there.ppv), ("NPV", there.npv))]
        lines.append(f"  at a prevalence of {there.prevalence:g}: {', '.join(values)}")
    return lines


def _estimate_text(found: "Estimate | None") -> str:
    if found is None or found.value is None:
        return "undefined"
    return f"{found.value:.3f}" + ("" if found.interval is None else f" ({found.low:.3f} to {found.high:.3f})")


def _cross_validation_lines(folds: "CrossValidation | None") -> list[str]:
    """Describe the pooled predictions of all folds: those of the nested selection, and those of each head."""
    if folds is None:
        return []
    lines = [f"{folds.n_folds}-fold cross-validation of {folds.n_images:,} images, pooled ROC AUC (95% interval):"]
    for result in folds.results:
        by_fold = ", ".join(f"{auc:.3f}" for auc in result.fold_roc_aucs)
        lines.append(f"  {result.name}: {_estimate_text(result.pooled.auc)}; by fold {by_fold}")
    return lines


def _learning_curve_lines(run: "Run", split: str) -> list[str]:
    if not run.learning_curve:
        return []
    lines = [f"learning curve of {run.selected}, {split} ROC AUC (mean, least and greatest of the draws):"]
    for point in run.learning_curve:
        aucs = point.roc_aucs
        lines.append(
            f"  {point.share:.0%} of the training patients, {point.n_images:,} images: {sum(aucs) / len(aucs):.3f} "
            f"({min(aucs):.3f} to {max(aucs):.3f})"
        )
    return lines


def _over_seeds(n_seeds: int) -> str:
    return f", the mean over {n_seeds} seeds" if n_seeds > 1 else ""


def _heads_table(run: "Run", shown: "Sequence[HeadResult]", split: str) -> list[str]:
    """Make the table of heads and references: what each is, and its metrics."""
    from hoarfrost.evaluation import ShownIn, metrics_of  # not above: other commands print without scikit-learn

    heads = [head for head in run.heads if head in shown]
    of_all = [*map(_scores_of, heads), *map(_scores_of, run.references)]
    metrics = metrics_of(of_all, ShownIn.EVERYWHERE)
    titles = [f"{split} {_title(metric, _scores_of(run.head(run.selected)))}" for metric in metrics]
    rows: list[tuple[str, ...]] = [("", "head", "parameters", "epochs", "val AUC", *titles)]
    for head in heads:
        about = head.name, f"{head.n_parameters:,}", f"{head.best_epoch} of {head.epochs}"
        rows.append(("*" if head.name == run.selected else "", *about, *_score_cells(head, metrics)))
    rows += [("", one.name, "", "", *_score_cells(one, metrics)) for one in run.references]
    return table(rows)


def _title(metric: "Metric", scores: "Scores") -> str:
    has_interval = metric.key in scores and scores[metric.key].interval is not None
    return (metric.short or metric.title) + (" (95% interval)" if has_interval else "")


def _score_cells(result: "HeadResult | ReferenceResult", metrics: "Sequence[Metric]") -> tuple[str, ...]:
    scores, cells = _scores_of(result), []
    for metric in metrics:
        guess = scores.value_or_none(metric.baseline)
        beside = "" if guess is None else f" (majority class {guess:.3f})"
        cells.append(_estimate_text(scores.estimates.get(metric.key)) + beside)
    return f"{_area(result.val):.3f}", *cells


def _area(scores: "Scores") -> float:
    return scores.auc.value or 0.0


def _scores_of(result: "HeadResult | ReferenceResult") -> "Scores":
    return result.val if result.test is None else result.test
