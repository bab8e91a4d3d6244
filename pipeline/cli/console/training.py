"""The result of `train` as text: heads, intervals, operating points, folds."""

from typing import TYPE_CHECKING, Any

from hoarfrost.cli.console.lines import CORRECTED, count, p_text, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from hoarfrost.evaluation import Estimate, Metric, Scores
    from hoarfrost.evaluation.added_value import Gain, ModelScores
    from hoarfrost.runs import (
        Assessment,
        ComparedViews,
        Covariates,
        CrossValidated,
        CrossValidation,
        FixedPoint,
        HeadResult,
        LeftOut,
        ReferenceResult,
        RepeatedSplits,
        Run,
    )

SHOWN_HEADS = 20  # in a table


def train_document(run: "Run") -> "dict[str, Any]":
    """Return what `train --json` prints."""
    from hoarfrost.runs import metrics_document

    # No forward pass: training loads no encoder (test_train_imports_neither_torchvision_nor_pillow holds it).
    return {**metrics_document(run), "run": str(run.directory), "forward_images": 0}


def train_text(run: "Run") -> str:
    """Return the summary of a run: the table of heads, the selected one, and how far its scores can be trusted."""
    from hoarfrost.experiment.splits import rule_named
    from hoarfrost.runs import precision_text, together_text

    split = "test" if run.heads[0].test is not None else run.config.validation
    shown = sorted(run.heads, key=lambda head: (head.name != run.selected, -_area(head.val)))[:SHOWN_HEADS]
    lines = _heads_table(run, shown, split)
    if len(run.heads) > len(shown):
        lines.append(
            f"{len(run.heads) - len(shown):,} more heads with a lower {run.config.validation} AUC are in metrics.json"
        )
    lines.append(f"* {_selection(run)}")
    if split == "test":
        lines.append(f"  Its {run.config.validation} AUC is optimistic, because the same images selected it.")
    lines.append(f"{_sizes(run)} images, split {rule_named(run.config.dataset.split_by).brief}")
    dataset = run.config.dataset
    if dataset.positive is not None and dataset.positive == dataset.classes[1:]:  # as it is without --positive
        lines.append(
            f"Positive class: {dataset.positive[0]}. To choose the other one, use --positive {dataset.classes[0]}."
        )
    together = "" if run.leakage is None else together_text(run.leakage)
    lines += [together] if together else []
    if run.config.per_patient is not None:
        lines.append(f"Scores count patients, by the {run.config.per_patient} of their images' probabilities.")
    lines += _method_lines([*map(_scores_of, shown), *map(_scores_of, run.references)])
    lines += [precision] if (precision := precision_text(run)) else []
    lines += _decision_lines(_scores_of(run.head(run.selected)))
    lines += _no_test_lines(run, split)
    lines += [f"{head.name}: {alarm}" for head in shown for alarm in head.alarms]
    n_train = run.config.dataset.n_split["train"]
    if run.references and run.references[0].n_train < n_train:
        lines.append(f"The references are fitted on {run.references[0].n_train:,} of the {n_train:,} training images.")
    lines += _assessment_lines(run.assessment, run.config.validation)
    lines += _acquisition_lines(run, split)
    lines += _label_lines(run, split)
    lines += _cross_validation_lines(run.cross_validation)
    lines += _random_splits_lines(run.repeats)
    lines += _left_out_lines(run.left_out)
    lines += _learning_curve_lines(run, split)
    lines += _views_lines(run.views)
    lines += _covariate_lines(run.covariates)
    return "\n".join([*lines, f"run {run.directory}"])


def _no_test_lines(run: "Run", split: str) -> "Iterator[str]":
    """Name the reason why there are no test scores: there is no test split, or it is locked."""
    from hoarfrost.report.words import several

    plan = run.config.plan
    if split != "test" and plan is not None:
        looks = f" Earlier runs looked at them {several(len(run.looks), 'time')}." if run.looks else ""
        yield (
            f"The test split ({several(plan.n_test, 'image')}) is locked: these are {run.config.validation} scores, which "
            f"also chose the head. `report` shows the test scores, and counts this as a look.{looks}"
        )
        yield f"Analysis plan SHA-256 {plan.digest}, fixed {plan.created} before training."
    elif split != "test":
        yield (
            f"There is no test split. These are {run.config.validation} scores, which also chose the head: they are too high "
            "for it."
        )


def _sizes(run: "Run") -> str:
    """Return the number of images in each split, and of patients where they are known."""
    from hoarfrost.report.words import several

    texts = []
    for size in run.split_sizes()[:-1]:
        patients = "" if size.n_patients is None else f" ({several(size.n_patients, 'patient')})"
        texts.append(f"{size.n_images:,} {size.split}{patients}")
    return ", ".join(texts)


def _selection(run: "Run") -> str:
    """Return how the head was selected, and the weights of the heads that a mean is made of."""
    chosen = run.head(run.selected)
    parts = ", ".join(f"{share:.2f} {name}" for name, share in chosen.shares.items())
    if parts:
        return f"selected: the mean of all kinds of head, weighted by {run.config.validation} loss ({parts})"
    return f"selected {run.config.selection}"


# -- the table ----------------------------------------------------------------------------------------------------------


def _heads_table(run: "Run", shown: "Sequence[HeadResult]", split: str) -> list[str]:
    """Return the table of heads and references: what each is, and its metrics."""
    from hoarfrost.evaluation import ShownIn, metrics_of  # not above: other commands print without scikit-learn

    heads = [head for head in run.heads if head in shown]
    scored = [*map(_scores_of, heads), *map(_scores_of, run.references)]
    metrics = metrics_of(scored, ShownIn.EVERYWHERE)
    titles = [f"{split} {_title(metric, scored)}" for metric in metrics]
    area = "val AUC" if run.config.n_cross_fit is None else "out-of-fold AUC"
    rows: list[tuple[str, ...]] = [("", "head", "members", "parameters", area, *titles)]
    for head in heads:
        about = head.trained_as or head.name, f"{head.n_members}", f"{head.n_parameters:,}"
        rows.append(("*" if head.name == run.selected else "", *about, *_score_cells(head, metrics)))
    rows += [
        ("", f"{one.name} ({one.setting})" if one.setting else one.name, "", "", *_score_cells(one, metrics))
        for one in run.references
    ]
    return table(rows)


def _title(metric: "Metric", results: "Iterable[Scores]") -> str:
    has_interval = any(metric.key in scores and scores[metric.key].interval is not None for scores in results)
    return (metric.short or metric.title) + (" (95% CI)" if has_interval else "")


def _score_cells(result: "HeadResult | ReferenceResult", metrics: "Sequence[Metric]") -> tuple[str, ...]:
    scores = _scores_of(result)
    return f"{_area(result.val):z.3f}", *(_estimate_text(scores.printed(metric.key)) for metric in metrics)


def _method_lines(results: "Iterable[Scores]") -> "Iterator[str]":
    """Name the method of the intervals of ROC AUCs, and why it is not DeLong's."""
    from hoarfrost.evaluation.intervals import NEWCOMBE
    from hoarfrost.evaluation.metrics import ROC_AUC

    found = [estimate for scores in results if (estimate := scores.printed(ROC_AUC)) is not None]
    methods = list(dict.fromkeys(estimate.method for estimate in found if estimate.interval is not None))
    if methods:
        yield f"Intervals of the AUC: {' or '.join(methods)}."
    if NEWCOMBE in methods:
        yield f"{NEWCOMBE}'s is used for few images of a class or an AUC near 1, because DeLong's is too narrow there."


def _decision_lines(scores: "Scores") -> "Iterator[str]":
    """Name the thresholds that decide accuracy, where there are any."""
    if scores.rule:
        yield f"Accuracy: at the threshold that each head has by {scores.rule} on validated images."


def _estimate_text(found: "Estimate | None") -> str:
    if found is None or found.value is None:
        return "undefined"
    if found.why_none:
        return f"{found.value:z.3f} ({found.why_none})"
    return f"{found.value:z.3f}" + ("" if found.interval is None else f" ({found.low:z.3f} to {found.high:z.3f})")


def _area(scores: "Scores") -> float:
    return scores.auc.value or 0.0


def _scores_of(result: "HeadResult | ReferenceResult") -> "Scores":
    return result.val if result.test is None else result.test


# -- the selected head ----------------------------------------------------------------------------------------------------


def _label_lines(run: "Run", split: str) -> "Iterator[str]":
    """Describe the selected head's AUC by label, if an image may have several."""
    from hoarfrost.report.words import of_patients

    if run.config.dataset.is_multilabel:
        yield f"{run.selected}, {split} ROC AUC by label (95% CI):"
        for label, one in _scores_of(run.head(run.selected)).per_class.items():
            images = f"{one.auc.n:,} images{of_patients(one.auc.n_patients)}"
            yield f"  {label}: {_estimate_text(one.auc)}, {images} with a known label"


def _assessment_lines(found: "Assessment | None", validation: str) -> "Iterator[str]":
    """Describe operating points and calibration, if there is one positive class."""
    if found is None or len(found.classes) > 1:
        return
    split = "test split" if found.split == "test" else f"{validation} predictions"
    yield f"{found.head}, {split}, thresholds chosen on {validation} predictions (95% CI):"
    alike: dict[object, list[FixedPoint]] = {}  # several rules may choose the same threshold
    for fixed in found.classes[0].points:
        alike.setdefault(fixed.by_fold or fixed.point.threshold or fixed.point.name, []).append(fixed)
    for points in alike.values():
        yield from (f"  {text}" for text in _point_lines(points))
    if found.calibration is not None:
        yield found.calibration.verdict
    if found.held_by_sets is not None:
        held = _estimate_text(found.held_by_sets)
        yield f"Conformal sets for a coverage of 90% hold the true class in {held} of the {split}."


def _point_lines(alike: "Sequence[FixedPoint]") -> "Iterator[str]":
    point, result = alike[0].point, alike[0].result
    if result is None:
        yield f"{point.name}: {point.reason}"
        return
    names = "; ".join(fixed.point.name for fixed in alike)
    shares = {
        "sensitivity": result.sensitivity,
        "specificity": result.specificity,
        "PPV": result.ppv,
        "NPV": result.npv,
    }
    yield f"{alike[0].decides()} ({names}): {_named_estimates(shares)}"
    yield from (f"  {fixed.point.promise}" for fixed in alike if fixed.point.promise)
    if result.at_prevalence is not None:
        there = result.at_prevalence
        yield f"  at a prevalence of {there.prevalence:g}: {_named_estimates({'PPV': there.ppv, 'NPV': there.npv})}"


def _named_estimates(estimates: "Mapping[str, Estimate | None]") -> str:
    return ", ".join(f"{name} {_estimate_text(one)}" for name, one in estimates.items())


def _acquisition_lines(run: "Run", split: str) -> "Iterator[str]":
    """Show the ROC AUCs of classifiers that do not look at the image, next to that of the selected head."""
    found = run.acquisition
    if found is None:
        return
    first = found.of_headers or found
    area = _estimate_text(first.scored)
    yield f"What files tell without looking at the image ({', '.join(first.facts)}): {split} AUC {area}"
    if first is not found:
        added = ", ".join(fact for fact in found.facts if fact not in first.facts)
        yield f"  with {added}: {split} AUC {_estimate_text(found.scored)}"


# -- folds and shares -----------------------------------------------------------------------------------------------------


def _cross_validation_lines(folds: "CrossValidation | None") -> "Iterator[str]":
    """Describe the pooled predictions of all folds: of the head selected in each, and of each head."""
    if folds is None:
        return
    from hoarfrost.report.words import of_patients

    images = f"{folds.n_images:,} images{of_patients(folds.whole.pooled.n_patients)}"
    yield f"{folds.n_folds}-fold cross-validation of {images}, pooled ROC AUC (95% CI):"
    for result in folds.results:
        by_fold = ", ".join(f"{auc:z.3f}" for auc in result.fold_roc_aucs)
        yield f"  {result.name}: {_estimate_text(result.pooled.auc)}; by fold {by_fold}{_difference(result)}"
    if any(result.difference for result in folds.results):
        yield f"  {CORRECTED}"
    yield f"  {folds.meaning}"
    if folds.held_by_sets is not None:
        held = _estimate_text(folds.held_by_sets)
        yield f"  Conformal sets for a coverage of 90% hold the true class in {held} of what the folds held out."


def _difference(result: "CrossValidated") -> str:
    """Return how far a head is from those that the folds selected, if it was compared with them."""
    if result.difference is None:
        return ""
    return f"; difference {_estimate_text(result.difference.difference)}{p_text(result.difference.p_holm)}"


def _random_splits_lines(found: "RepeatedSplits | None") -> "Iterator[str]":
    if found is None:
        return
    yield (
        f"{found.n_splits} random splits, mean ROC AUC (95% CI): {_estimate_text(found.roc_auc)}; lowest "
        f"{min(found.roc_aucs):z.3f}, highest {max(found.roc_aucs):z.3f}"
    )
    if found.instability is not None:
        one = found.instability
        yield (
            f"  Probabilities of single images vary with a standard deviation of {one.spread:z.3f} on average; the predicted "
            f"class changes in {one.changed:.1%} of the splits that held an image out."
        )


def _left_out_lines(found: "LeftOut | None") -> "Iterator[str]":
    """Describe what heads score at sites that they did not learn from, and by how much that is less than with sites mixed."""
    if found is None:
        return
    yield (
        f"Each {found.column} held out, mean ROC AUC (95% CI): {_estimate_text(found.held_out)}; mixed split "
        f"{_estimate_text(found.mixed)}; drop {_estimate_text(found.drop)}"
    )
    for one in found.sites:
        areas = f"{_estimate_text(one.held_out)}, in the mixed split {_estimate_text(one.mixed)}"
        yield f"  {one.site}, {count(one.n, 'image')}: " + (f"not scored: {one.reason}" if one.reason else areas)
    yield f"  {found.expectation}"


def _learning_curve_lines(run: "Run", split: str) -> "Iterator[str]":
    from hoarfrost.runs import outlook_of, outlook_text

    if run.learning_curve:
        yield f"Learning curve of {run.selected}, {split} ROC AUC (mean, lowest and highest of the draws):"
    for point in run.learning_curve:
        aucs, share = point.roc_aucs, f"{point.share:.0%} of the training patients, {point.n_images:,} images"
        yield f"  {share}: {point.mean:z.3f} ({min(aucs):z.3f} to {max(aucs):z.3f})"
    if (outlook := outlook_of(run)) is not None:
        yield f"  {outlook_text(outlook)}"


def _views_lines(views: "ComparedViews | None") -> "Iterator[str]":
    """Show what more looks gave: each set of views with its scores, and the difference from the first."""
    if views is None:
        return
    on = {"folds": "nested cross-validation", "test": "test split", "val": "the images that selected; optimistic"}
    yield f"Views ({on[views.basis]}): ROC AUC, log loss, difference in ROC AUC (95% CI):"
    for one in views.results:
        times = f" in {one.n_chosen} of {views.n_choices} folds" if views.n_choices > 1 else ""
        difference = "" if one.difference is None else f", {_estimate_text(one.difference)}"
        chosen = f", chosen{times}" if one.n_chosen else ""
        yield f"  {', '.join(one.views)}: {one.roc_auc:z.3f}, {one.loss:z.3f}{difference}{chosen}"


def _covariate_lines(found: "Covariates | None") -> "Iterator[str]":
    """Show what images add to clinical data: each model, the differences, and a sentence."""
    from hoarfrost.runs import in_words

    if found is None:
        return
    for one in found.results:
        at = "" if one.threshold is None else f", net benefit at a threshold probability of {one.threshold:z.3f}"
        yield f"Clinical data ({found.names}) and images, {one.where}: ROC AUC{at} (95% CI):"
        for model in one.models:
            yield f"  {in_words(model.name)}: {_two_texts(model)}"
        for gain in one.gains:
            yield f"  both minus {in_words(gain.over)}: {_two_texts(gain)}"
        yield f"  {one.verdict}"


def _two_texts(one: "ModelScores | Gain") -> str:
    benefit = "" if one.net_benefit is None else f"; {_estimate_text(one.net_benefit)}"
    return f"{_estimate_text(one.roc_auc)}{benefit}"
