"""What images add to covariates: models with one, the other and both, on the run's own splits and folds."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from hoarfrost.evaluation import apply_temperature, fit_temperature, macro_roc_auc
from hoarfrost.evaluation.added_value import (
    BOTH,
    CLINICAL,
    IMAGES,
    Scored,
    decision_curves,
    gains,
    joined,
    model_scores,
)
from hoarfrost.evaluation.calibration import at_prevalence
from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.evaluation.subgroups import MISSING, all_numbers_of, with_missing
from hoarfrost.experiment.classes import column_named
from hoarfrost.experiment.crossval import NESTED, Folded
from hoarfrost.experiment.development import OuterFold
from hoarfrost.experiment.results import Scored as Variants
from hoarfrost.experiment.task import Task
from hoarfrost.features.errors import TrainingError
from hoarfrost.runs.covariates import AddedValue, CovariateFacts, Covariates
from hoarfrost.training.covariates import Covariate, clinical_and_both

MOST_LEVELS = 20  # of a column of categories
SEPARATES = 1 - 1e-9  # ROC AUC of a column alone, from which it is the label by another name
RANGE = (0.01, 0.99)  # of threshold probabilities, as decision curves have it

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Images to fit the models with covariates on, and images to score them on.

    Attributes
    ----------
    fitted, held_out : ndarray (m,) int64
        Rows. No head that predicted `fitted` learned from the image, nor did any that predicted `held_out`.
    images : ndarray (n, C) float64
        The probabilities of the selected head for these rows.
    """

    fitted: Ints
    held_out: Ints
    images: Floats


def read_covariates(task: Task, names: Sequence[str], *, has_folds: bool) -> tuple[Covariate, ...]:
    """Read attribute columns as covariates, and refuse those that cannot be used.

    Raises
    ------
    TrainingError
        If a column is missing, constant, or of more categories than `MOST_LEVELS`; or if there is nothing to score on.
    """
    if names and "test" not in task.scored and not has_folds:
        raise TrainingError(
            "--covariates: there is no test split, so the gain would be measured on images that selected the head. Add "
            "--folds 5."
        )
    found = dict.fromkeys(column_named(task.table, name, "--covariates") for name in names)
    return tuple(_column(name, list(compress(task.table.attributes[name], task.readable))) for name in found)


def _column(name: str, cells: Sequence[str]) -> Covariate:
    texts = with_missing(cells)
    missing, numbers = np.array([text == MISSING for text in texts]), all_numbers_of(texts)
    levels = dict.fromkeys(text for text in texts if text != MISSING)
    where = f"--covariates: the column {name}"
    if numbers is not None:
        levels = dict.fromkeys(numbers[~missing].tolist())
    if len(levels) < 2:
        what = (
            "has no value in any image" if not levels else f"is {next(iter(levels))!r} in every image that has a value"
        )
        raise TrainingError(f"{where} {what}, so it cannot predict anything. Omit it.")
    if numbers is None and len(levels) > MOST_LEVELS:
        odd = next(text for text in levels if all_numbers_of([text]) is None)
        raise TrainingError(
            f"{where} has {len(levels):,} different texts, such as {odd!r}; at most {MOST_LEVELS} can be categories. Merge "
            "them into fewer. If it is a column of numbers, leave cells empty where there is none, then extract again."
        )
    return Covariate(name, np.array(texts), missing, numbers)


def _on_test(task: Task, scored: Variants) -> list[Part]:
    """Return the test split as a part, of which the models are fitted on the validated images; none without one."""
    test = task.scored.get("test")
    return [] if test is None else [Part(task.validated, test, scored.probabilities[scored.selected])]


def _in_folds(folds: Sequence[OuterFold], folded: Folded) -> list[Part]:
    """Return a part for each fold of nested cross-validation; none without folds."""
    if folded.out_of_fold is None:
        return []
    pooled, parts = folded.out_of_fold.probabilities[NESTED], []
    for fold, inside in zip(folds, folded.inside, strict=True):
        # The other rows are neither fitted on nor scored.
        images = np.where(np.isfinite(inside), inside, 1 / inside.shape[1])
        images[fold.held_out] = pooled[fold.held_out]
        parts.append(Part(fold.development.validated, fold.held_out, images))
    return parts


def added_value(
    task: Task, columns: Sequence[Covariate], scored: Variants, folds: Sequence[OuterFold], folded: Folded,
    prevalence: float | None,
) -> Covariates | None:  # fmt: skip
    """Fit and compare the models on the test split, and in folds, where there are any; None without covariates.

    Parameters
    ----------
    task : Task
    columns : sequence of Covariate
    scored : Scored
        Its selected head is the model of images.
    folds : sequence of OuterFold
    folded : Folded
        What nested cross-validation found in these folds.
    prevalence : float or None
        Of class 1 where the head will be used, for net benefit.
    """
    if not columns:
        return None
    facts = tuple(_facts(one, task) for one in columns)
    for one in facts:
        if one.caution:
            logger.warning("%s", one.caution)
    parts = {"test": _on_test(task, scored), "folds": _in_folds(folds, folded)}
    results = (_result(task, columns, basis, each, prevalence) for basis, each in parts.items() if each)
    return Covariates(facts, tuple(results))


def _facts(one: Covariate, task: Task) -> CovariateFacts:
    """Describe a column; a model of it alone that is never wrong on the validated images is a reason for caution."""
    rows, caution = task.validated, ""
    blind = np.full((len(task.y), len(task.names)), 1 / len(task.names))
    alone, _ = clinical_and_both([one], blind, task.y, rows)
    if macro_roc_auc(task.y[rows], alone[rows]) >= SEPARATES:
        caution = (
            f"The covariate {one.name} alone separates the classes perfectly. If it is known only with the diagnosis, omit "
            "it from --covariates."
        )
    n_levels = None if one.numbers is not None else len(np.unique(one.texts[~one.is_missing]))
    return CovariateFacts(one.name, n_levels, int(one.is_missing.sum()), caution)


def _result(
    task: Task, columns: Sequence[Covariate], basis: str, parts: Sequence[Part], prevalence: float | None
) -> AddedValue:
    each = [_scored(task, columns, one, prevalence) for one in parts]
    scored, n_folds, reason = joined(each), len(parts), ""
    try:
        compared = gains(scored, n_folds=n_folds, prevalence=prevalence)
    except ValueError as error:
        compared, reason = (), str(error)
    return AddedValue(
        basis,
        n_folds,
        round(np.mean([len(one.fitted) for one in parts])),
        len(scored.y),
        model_scores(scored, n_folds=n_folds, prevalence=prevalence),
        compared,
        float(np.median([one.thresholds[0] for one in each])) if scored.likely else None,
        decision_curves(scored, prevalence=prevalence),
        reason,
    )


def _scored(task: Task, columns: Sequence[Covariate], part: Part, prevalence: float | None) -> Scored:
    """Fit the models with covariates on a part's images, and return what all models predict of the others."""
    clinical, both = clinical_and_both(columns, part.images, task.y, part.fitted)
    units, fixed = task.units(part.held_out), task.units(part.fitted)
    models = {CLINICAL: clinical, IMAGES: part.images, BOTH: both}
    p = {name: units.joined(of[part.held_out]) for name, of in models.items()}
    decision = task.decision(part.images, part.fitted)
    if task.is_multilabel or len(task.names) != 2 or not decision.thresholds:
        return Scored(units.y, units.groups, p, {}, np.full(len(units.y), np.nan))
    before = fixed.joined(part.images[part.fitted])
    temperature = fit_temperature(fixed.y, before, fixed.groups).temperature
    limit = apply_temperature(np.array([[1 - decision.thresholds[0], decision.thresholds[0]]]), temperature)[:, 1]
    likely = {**p, IMAGES: apply_temperature(p[IMAGES], temperature)}
    share = float(fixed.y.mean())
    shifted = list(_shifted([limit, *(one[:, 1] for one in likely.values())], share, prevalence))
    thresholds = np.full(len(units.y), np.clip(shifted[0], *RANGE)[0])
    return Scored(units.y, units.groups, p, dict(zip(likely, shifted[1:], strict=True)), thresholds)


def _shifted(several: Sequence[Floats], share: float, prevalence: float | None) -> Iterator[Floats]:
    """Yield probabilities (n,) for the stated prevalence, if there is one."""
    for one in several:
        found = np.clip(one, 0, 1)
        yield found if prevalence is None else at_prevalence(found, share, prevalence)
