"""The first screen: the answer, and the cautions that a reader needs before believing it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from hoarfrost.evaluation import FEW, Estimate, Share, ShownIn, metrics_of
from hoarfrost.evaluation.checks import normal_quantile
from hoarfrost.evaluation.metrics import ROC_AUC, Metric
from hoarfrost.evaluation.subgroup_differences import AREA
from hoarfrost.evaluation.subgroups import MISSING
from hoarfrost.report.evaluation import Evaluation
from hoarfrost.report.external import cautions_of
from hoarfrost.report.scrutiny import lock_cautions, site_cautions
from hoarfrost.report.trust import FIGURE_TITLES
from hoarfrost.report.words import (
    decimal,
    estimate_text,
    interval,
    listed,
    of_patients,
    p_text,
    rule,
    several,
    threshold_text,
)
from hoarfrost.runs import Assessment, DatasetFacts, Run, leakage_warnings, precision_text

MAX_CLASSES_IN_TITLE = 5
ALARM = 0.05  # of all tests of heterogeneity together
FAR = 2.24  # standard deviations, which chance exceeds in 2.5%


@dataclass(frozen=True)
class Caution:
    """A caution: its title, a sentence with its numbers, and the section that shows more."""

    title: str
    text: str
    section: str


@dataclass(frozen=True)
class Tile:
    """One number of the answer: its name, its value, and the notes below it."""

    name: str
    value: str
    notes: tuple[str, ...]


def task_of(classes: tuple[str, ...], dataset: DatasetFacts) -> str:
    """Return the task in a few words."""
    if dataset.positive is not None:
        return f"{classes[1]} against {classes[0]}"
    if len(classes) > MAX_CLASSES_IN_TITLE:
        return f"{dataset.name}: {len(classes)} {'labels' if dataset.is_multilabel else 'classes'}"
    if dataset.is_multilabel:
        return f"Which of {', '.join(classes)}"
    return f"{', '.join(classes[:-1])} or {classes[-1]}"


def tiles(run: Run, evaluation: Evaluation) -> tuple[Tile, ...]:
    """Return the answer: ROC AUC, sensitivity and specificity at the first threshold, other metrics shown everywhere."""
    scores = evaluation.scores(run.head(run.selected))
    area, *others = (_tile(metric, run, evaluation) for metric in metrics_of([scores], ShownIn.EVERYWHERE))
    return area, *_point_tiles(run, evaluation.split_name, evaluation.unit), *others


def _tile(metric: Metric, run: Run, evaluation: Evaluation) -> Tile:
    head = run.head(run.selected)
    scores = evaluation.scores(head)
    found, notes = scores[metric.key], []
    if found.interval is not None:
        method = f" ({found.method})" if found.method else ""
        notes.append(f"95% interval {interval(found.interval)}{method}")
    if found.why_none:
        notes.append(found.why_none)
    folded = run.cross_validation
    if folded is not None and metric.key in folded.whole.pooled:
        notes.append(f"{folded.n_folds}-fold cross-validated: {estimate_text(folded.whole.pooled[metric.key])}")
    if metric.key == ROC_AUC:
        notes.append(f"on {evaluation.samples()}")
        if evaluation.is_binary:
            name, n = evaluation.classes[1], int(evaluation.y_true.sum())
            positives = several(n, f"{name} {evaluation.unit}")
            if name[:1].isdigit():  # "118 1 rows"
                positives = f"labelled {name}: {several(n, evaluation.unit)}"
            notes.append(f"{positives}{evaluation.of_patients(1)}")
        notes += [precision] if (precision := precision_text(run)) else []
    if metric.baseline:
        notes.append(evaluation.decided_by(head))
        guess = "answer" if evaluation.is_multilabel else "class"
        notes.append(f"always the most frequent {guess}: {decimal(scores.value_or_none(metric.baseline))}")
    return Tile(f"{evaluation.split_name} {evaluation.title_of(metric)}", decimal(found.value), tuple(notes))


def _point_tiles(run: Run, split: str, unit: str) -> Iterator[Tile]:
    """Yield sensitivity and specificity at the first operating point, if there is one positive class."""
    if run.assessment is None or len(run.assessment.classes) != 1:
        return
    fixed = run.assessment.classes[0].points[0]
    if fixed.result is None:
        return
    same = "same thresholds" if fixed.by_fold else "same threshold"
    decides = fixed.decides(partial(threshold_text, scale=run.scale_of(run.selected)))
    rules = (f"{rule(decides)} ({rule(fixed.point.name)})", same)
    for name, how in zip(("sensitivity", "specificity"), rules, strict=True):
        share: Share = getattr(fixed.result, name)
        patients = "" if share.n_patients is None else f" {unit}s of {several(share.n_patients, 'patient')}"
        ends = share.why_none or f"95% interval {interval(share.interval)}"
        ends += f", {share.n_hits:,} of {share.n:,}{patients}"
        yield Tile(f"{split} {name}", decimal(share.value), (ends, how))


# -- warnings -----------------------------------------------------------------------------------------------------------


def grave_warnings(run: Run, evaluation: Evaluation) -> tuple[Caution, ...]:
    """Return the cautions that change the meaning of every number; they are above everything else."""
    return tuple(_grave(run, evaluation))


def _grave(run: Run, evaluation: Evaluation) -> Iterator[Caution]:
    yield from (Caution(*caution) for caution in (*site_cautions(run), *lock_cautions(run)))
    weights = run.config.embeddings.weights
    if weights.startswith("random:"):
        yield Caution(
            "Untrained backbone",
            f"These embeddings come from an untrained backbone ({weights}). The scores are a lower limit, not a result.",
            "provenance",
        )
    if evaluation.split == "val":
        yield Caution(
            "No test split",
            f"The dataset does not have a test split. All scores are {run.config.validation} scores, which also chose the "
            "head. Expect lower scores on new images.",
            "data",
        )
    if run.leakage is not None and run.leakage.allowed:
        yield Caution("Leakage", leakage_warnings(run.leakage)[0], "leakage")
    if run.leakage is not None and run.leakage.conflicting is not None:
        yield Caution("Conflicting labels", run.leakage.conflicting.warning, "leakage")
    if run.config.dataset.patients_hint:
        yield Caution("Patients unknown", run.config.dataset.patients_hint, "data")
    if run.external is not None and run.external.allowed:
        overlap = " ".join(one.text for one in run.external.overlap if one.n)
        yield Caution(
            "Leakage", f"Overlap with the training images, allowed by --allow-leakage. {overlap} All scores are too high.",
            "external",
        )  # fmt: skip
    for alarm in run.head(run.selected).alarms:
        yield Caution("Selected head", f"The selected head {run.selected}: {alarm}.", "heads")


def warnings_of(run: Run, evaluation: Evaluation) -> tuple[Caution, ...]:
    """Return all other cautions, each with its numbers."""
    found = [Caution(*caution) for caution in cautions_of(run)]
    found += [*_of_leakage(run), *_of_cases(run, evaluation), *_of_heads(run)]
    found += [*_of_folds(run, evaluation), *_of_subgroups(run, evaluation)]
    found += [
        Caution("Possible shortcut", f"{one.warning[0].upper()}{one.warning[1:]}", "shortcuts")
        for one in run.shortcuts
        if one.is_shortcut
    ]
    if run.warning_of_files:
        found.append(Caution("What files tell", run.warning_of_files, "acquisition"))
    columns = () if run.covariates is None else run.covariates.columns
    found += [Caution("Covariate", one.caution, "covariates") for one in columns if one.caution]
    shown = {warning.text for warning in (*found, *grave_warnings(run, evaluation))}
    others = [Caution("Note", text, "provenance") for text in run.config.warnings if text not in shown]
    return tuple(others + found)


def _of_leakage(run: Run) -> Iterator[Caution]:
    if run.leakage is None:
        return
    for text in leakage_warnings(run.leakage)[int(run.leakage.allowed) :]:
        yield Caution("Near-duplicates", text, "leakage")
    if run.leakage.not_compared:
        yield Caution("Near-duplicates", f"Not searched for: {run.leakage.not_compared}.", "leakage")


def _of_cases(run: Run, evaluation: Evaluation) -> Iterator[Caution]:
    """Yield a caution on the rarest class, if it is rare; patients are counted where they are known."""
    if run.assessment is None:
        return
    n_rare, n_all, which = min(_cases(run.assessment, evaluation))
    counted = evaluation.unit if evaluation.patients is None else "patient"
    if n_rare < FEW:
        area = evaluation.area(run.head(run.selected))
        yield Caution(
            f"Few {counted}s",
            f"Only {n_rare:,} of the {n_all:,} {evaluation.split_name} {counted}s are {which}. With so few, a handful of "
            f"other {counted}s could change the ROC AUC: {estimate_text(area)}.",
            "data",
        )


def _cases(assessment: Assessment, evaluation: Evaluation) -> Iterator[tuple[int, int, str]]:
    """Yield for each class or label the number of cases with and without it, of how many, and in words."""
    for one in assessment.classes:
        counts = {f"{one.name}": one.n_positive, f"not {one.name}": one.n - one.n_positive}
        n_all = one.n
        if evaluation.patients is not None:
            number = evaluation.classes.index(one.name)
            y = evaluation.y_true[:, number] if evaluation.is_multilabel else evaluation.y_true == number
            counts = {
                word: len(np.unique(evaluation.patients[y == value]))
                for word, value in zip(counts, (1, 0), strict=True)
            }
            n_all = len(np.unique(evaluation.patients[y >= 0]))
        yield from ((n, n_all, word) for word, n in counts.items())


def _of_folds(run: Run, evaluation: Evaluation) -> Iterator[Caution]:
    """Yield a caution if test and cross-validated ROC AUC differ by more than the choice of test images explains."""
    folded = run.cross_validation
    if folded is None or run.out_of_fold is None or evaluation.split != "test":
        return
    test, pooled = evaluation.area(run.head(run.selected)), folded.whole.pooled.auc
    if test.value is None or pooled.value is None:
        return
    variances = [_variance(found) for found in (test, pooled)]
    # Test images that are in folds too are part of the pooled figure: only the others vary it.
    shared = sum(run.out_of_fold.folds[row] >= 0 for row in run.rows_of("test")) / folded.n_images
    variance = variances[0] * (1 - shared) if shared else sum(variances)
    if abs(test.value - pooled.value) > FAR * math.sqrt(variance):
        way = "easier" if test.value > pooled.value else "harder"
        yield Caution(
            "Test and cross-validation differ",
            f"ROC AUC {estimate_text(test)} on {evaluation.samples()}, {estimate_text(pooled)} in {folded.n_folds} folds of "
            f"{folded.n_images:,} images{of_patients(folded.whole.pooled.n_patients)}. The test split seems {way} than the "
            "data as a whole. Report both.",
            "folds",
        )


def _variance(found: Estimate) -> float:
    """Return the variance that an interval stands for; infinite without one."""
    return (
        math.inf
        if found.interval is None
        else ((found.interval[1] - found.interval[0]) / 2 / normal_quantile(0.95)) ** 2
    )


def _of_heads(run: Run) -> Iterator[Caution]:
    alarmed = [head.name for head in run.heads if head.alarms and head.name != run.selected]
    if alarmed:
        yield Caution("Other heads", f"{several(len(alarmed), 'head')} with a warning: {listed(alarmed)}.", "heads")


def _of_subgroups(run: Run, evaluation: Evaluation) -> Iterator[Caution]:
    """Yield each test of heterogeneity with a corrected p below 0.05, with the value that has the lowest figure.

    An attribute without a test of its ROC AUC (a single value of enough cases, or a run of an earlier version) has the
    subgroup with the lowest ROC AUC whose interval is below that of all images.
    """
    if run.assessment is None:
        return
    subgroups, tests = run.assessment.subgroups, run.assessment.heterogeneity
    overall = evaluation.scores(run.head(run.selected)).value(ROC_AUC)
    for test in tests:
        if test.p_holm is not None and test.p_holm < ALARM:
            compared = [one for one in subgroups if one.attribute == test.attribute and one.value in test.values]
            worst = min(compared, key=lambda one: getattr(one, test.figure).value)
            yield Caution(
                "Uneven subgroups",
                f"{FIGURE_TITLES[test.figure]} differs between the values of {test.attribute} (corrected p "
                f"{p_text(test.p_holm)}). It is lowest for {worst.value} ({several(worst.n, evaluation.unit)}"
                f"{of_patients(worst.roc_auc.n_patients)}): {estimate_text(getattr(worst, test.figure))}.",
                "subgroups",
            )
    tested = {test.attribute for test in tests if test.figure == AREA and test.p is not None}
    for attribute in dict.fromkeys(one.attribute for one in subgroups if one.attribute not in tested):
        of_attribute = [one for one in subgroups if one.attribute == attribute and one.value != MISSING]
        below = [one for one in of_attribute if one.roc_auc.high is not None and one.roc_auc.high < overall]
        if below:
            worst = min(below, key=lambda one: one.roc_auc.value or 0.0)
            yield Caution(
                "Uneven subgroups",
                f"{attribute} {worst.value} ({several(worst.n, evaluation.unit)}{of_patients(worst.roc_auc.n_patients)}): "
                f"ROC AUC {estimate_text(worst.roc_auc)}; "
                f"all: {decimal(overall)}.",
                "subgroups",
            )
