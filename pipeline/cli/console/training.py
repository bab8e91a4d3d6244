"""What `train` tells: heads, intervals, thresholds, folds."""

from typing import TYPE_CHECKING

from hoarfrost.cli.console.lines import table

if TYPE_CHECKING:
    from hoarfrost.evaluation import Share
    from hoarfrost.runs import Assessment, CrossValidation, FixedPoint, HeadResult, ReferenceResult, Run

SHOWN_HEADS = 20  # in a table


def train_text(run: "Run") -> str:
    """Describe a run: the table of heads, and which one validation selected."""
    from hoarfrost.experiment.splits import rule_named

    split = "test" if run.heads[0].test is not None else "val"
    rows: list[tuple[str, ...]] = [
        ("", "head", "parameters", "epochs", "val AUC", f"{split} AUC (95% interval)", f"{split} accuracy")
    ]
    shown = sorted(run.heads, key=lambda head: (head.name != run.selected, -head.val["roc_auc"]))[:SHOWN_HEADS]
    rows += [_head_row(head, head.name == run.selected) for head in run.heads if head in shown]
    rows += [_reference_row(reference) for reference in run.references]
    lines = table(rows)
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
    scores = head.val if head.test is None else head.test
    lines = [f"{head.name}, {split} ROC AUC by label (95% interval):"]
    for label, area in scores["roc_auc_per_class"].items():
        low, high = scores["roc_auc_ci95_per_class"][label]
        lines.append(
            f"  {label}: {area:.3f} ({low:.3f} to {high:.3f}), known of {scores['n_known_per_class'][label]:,} images"
        )
    return lines


def _interval_lines(run: "Run", split: str) -> list[str]:
    """Give the selected head's other interval where DeLong's covers too seldom."""
    head = run.head(run.selected)
    scores = head.val if head.test is None else head.test
    if "roc_auc_ci95_newcombe" not in scores:
        return []
    low, high = scores["roc_auc_ci95_newcombe"]
    why = "of few cases, or near one, DeLong's interval is too narrow"
    return [f"{head.name}, {split} AUC: {why}; Newcombe's is {low:.3f} to {high:.3f}"]


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
    shares = {name: getattr(result, name) for name in ("sensitivity", "specificity", "ppv", "npv")}
    words = {"ppv": "PPV", "npv": "NPV"}
    texts = [
        f"{words.get(name, name)} {_share_text(share, getattr(fixed.by_patient, name, None))}"
        for name, share in shares.items()
    ]
    lines = [f"{point.name}, from {result.threshold:.3f} on: {', '.join(texts)}"]
    there = result.at_prevalence
    if there is not None:
        values = [
            f"{word} {'undefined' if value is None else f'{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})'}"
            for word, value in (("PPV", there.ppv), ("NPV", there.npv))
        ]
        lines.append(f"  at a prevalence of {there.prevalence:g}: {', '.join(values)}")
    return lines


def _share_text(share: "Share", by_patient: tuple[float, float] | None) -> str:
    if share.value is None:
        return "undefined"
    low, high = by_patient or (share.low, share.high)
    return f"{share.value:.3f} ({low:.3f} to {high:.3f})"


def _cross_validation_lines(folds: "CrossValidation | None") -> list[str]:
    """Describe the pooled predictions of all folds: those of the nested selection, and those of each head."""
    if folds is None:
        return []
    lines = [f"{folds.n_folds}-fold cross-validation of {folds.n_images:,} images, pooled ROC AUC (95% interval):"]
    for result in folds.results:
        low, high = result.pooled["roc_auc_ci95"]
        by_fold = ", ".join(f"{auc:.3f}" for auc in result.fold_roc_aucs)
        lines.append(f"  {result.name}: {result.pooled['roc_auc']:.3f} ({low:.3f} to {high:.3f}); by fold {by_fold}")
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


def _reference_row(reference: "ReferenceResult") -> tuple[str, ...]:
    return ("", reference.name, "", "", *_score_cells(reference))


def _head_row(head: "HeadResult", selected: bool) -> tuple[str, ...]:
    epochs = f"{head.best_epoch} of {head.epochs}"
    return ("*" if selected else "", head.name, f"{head.n_parameters:,}", epochs, *_score_cells(head))


def _score_cells(result: "HeadResult | ReferenceResult") -> tuple[str, str, str]:
    scores = result.test if result.test is not None else result.val
    low, high = scores["roc_auc_ci95"]
    return (
        f"{result.val['roc_auc']:.3f}",
        f"{scores['roc_auc']:.3f} ({low:.3f} to {high:.3f})",
        f"{scores['accuracy']:.3f} (majority class {scores['majority_accuracy']:.3f})",
    )
