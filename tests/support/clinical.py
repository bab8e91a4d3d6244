"""Cohorts of clinical data and images with known effects, and what `train --covariates` estimates on them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from hoarfrost.evaluation import macro_roc_auc
from hoarfrost.evaluation.added_value import BOTH, CLINICAL, IMAGES, Gain, Scored, gains, joined
from hoarfrost.evaluation.decision import net_benefit
from hoarfrost.training.covariates import Covariate, clinical_and_both
from tests.support.folds import Drawn, ridge

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

AGE, SEX, MISSING = 0.7, (0.4, 0.6), 0.1  # effect in SD, shares of women by class, missing ages
PREVALENCE, PENALTY, N_FEATURES, N_FOLDS, THRESHOLD = 0.3, 30.0, 32, 5, 0.3


@dataclass(frozen=True)
class Cohort:
    """Labels (n,), covariates, image features (n, d), patients (n,), and what the effects themselves say of each image.

    `clinical` and `images` are the log-likelihood ratios (n,) of the classes.
    """

    y: Ints
    columns: tuple[Covariate, ...]
    x: Floats
    delta: Floats
    patients: Ints
    clinical: Floats
    images: Floats

    def rows(self, which: Ints) -> "Cohort":
        """Return some of the images."""
        columns = tuple(
            Covariate(
                one.name, one.texts[which], one.is_missing[which], None if one.numbers is None else one.numbers[which]
            )
            for one in self.columns
        )
        return Cohort(
            self.y[which], columns, self.x[which], self.delta, self.patients[which], self.clinical[which],
            self.images[which],
        )  # fmt: skip


def cohort(rng: np.random.Generator, n_patients: int, *, distance: float, n_images: int = 1) -> Cohort:
    """Draw patients, each with so many images, whose age, sex and images differ between the classes by known effects."""
    own = rng.permutation((np.arange(n_patients) < PREVALENCE * n_patients).astype(np.int64))
    patients = np.repeat(np.arange(n_patients), n_images)
    y = own[patients]
    age = rng.normal(size=n_patients) + AGE * own
    is_female = rng.random(n_patients) < np.where(own == 1, SEX[1], SEX[0])
    is_missing = (rng.random(n_patients) < MISSING)[patients]
    delta = np.full(N_FEATURES, distance / np.sqrt(N_FEATURES))
    shared = rng.normal(size=(n_patients, N_FEATURES))[patients]
    noise = (shared + rng.normal(size=(len(y), N_FEATURES))) / np.sqrt(2) if n_images > 1 else shared
    x = noise + y[:, None] * delta
    by_sex = np.where(is_female, np.log(SEX[1] / SEX[0]), np.log((1 - SEX[1]) / (1 - SEX[0])))[patients]
    by_age = np.where(is_missing, 0.0, AGE * (age[patients] - AGE / 2))
    numbers = np.where(is_missing, np.nan, age[patients])
    texts = np.where(is_female, "f", "m")[patients]
    columns = (
        Covariate("age", np.where(is_missing, "(missing)", age[patients].astype(str)), is_missing, numbers),
        Covariate("sex", texts, np.zeros(len(y), bool), None),
    )
    return Cohort(y, columns, x, delta, patients, by_age + by_sex, (x - delta / 2) @ delta)


def estimated(rng: np.random.Generator, own: Cohort, test: Cohort, population: Cohort) -> tuple[list[Scored], Floats]:
    """Train heads by cross-fitting on a cohort, and the models with covariates; return the test's scores and the truth.

    The truth is that of the same models on the population: gains (2, 2) over clinical data and over images, in ROC AUC and
    in net benefit.
    """
    n, weights, images = len(own.y), [], np.empty(len(own.y))
    folds = rng.permutation(np.arange(own.patients.max() + 1) % N_FOLDS)[own.patients]
    for fold in range(N_FOLDS):
        rows = folds != fold
        w = ridge(Drawn(own.y, own.x, own.delta), rows, PENALTY)
        centre = float((own.x[rows] @ w).mean())
        images[~rows] = own.x[~rows] @ w - centre
        weights.append((w, centre))
    others = [np.mean([one.x @ w - centre for w, centre in weights], axis=0) for one in (test, population)]
    everyone = Cohort(*(_joined(own, test, population, name) for name in Cohort.__dataclass_fields__))
    # Ridge regression of 0 and 1 has a slope of about a fourth of that of the log odds.
    p = expit(4 * np.concatenate([images, *others]) + np.log(PREVALENCE / (1 - PREVALENCE)))
    two = np.column_stack([1 - p, p])
    clinical, both = clinical_and_both(everyone.columns, two, everyone.y, np.arange(n))
    parts = []
    for rows in (np.arange(n, n + len(test.y)), np.arange(n + len(test.y), len(p))):
        models = {CLINICAL: clinical[rows], IMAGES: two[rows], BOTH: both[rows]}
        likely = {name: one[:, 1] for name, one in models.items()}
        groups = everyone.patients[rows]
        parts.append(Scored(everyone.y[rows], groups, models, likely, np.full(len(rows), THRESHOLD)))
    return parts[:1], true_gains(parts[1])


def true_gains(scored: Scored) -> Floats:
    """Return the gains (2, 2) on very many samples, as in `estimated`."""
    areas = {name: macro_roc_auc(scored.y, p) for name, p in scored.probabilities.items()}
    odds = THRESHOLD / (1 - THRESHOLD)
    benefits = {name: net_benefit(scored.y, p >= THRESHOLD, odds)[0] for name, p in scored.likely.items()}
    return np.array([[of[BOTH] - of[name] for of in (areas, benefits)] for name in (CLINICAL, IMAGES)])


def gain_of_effects(population: Cohort) -> Floats:
    """Return the gains (2,) in ROC AUC that the effects themselves allow: over clinical data, and over images."""
    both, alone = population.clinical + population.images, (population.clinical, population.images)
    areas = [macro_roc_auc(population.y, np.column_stack([-score, score])) for score in (both, *alone)]
    return np.array([areas[0] - areas[1], areas[0] - areas[2]])


def in_folds(rng: np.random.Generator, whole: Cohort, population: Cohort) -> tuple[list[Scored], Floats]:
    """Do the same in outer folds; the truth is the mean over them."""
    outer = rng.permutation(np.arange(whole.patients.max() + 1) % N_FOLDS)[whole.patients]
    parts, truths = [], []
    for fold in range(N_FOLDS):
        own = whole.rows(np.flatnonzero(outer != fold))
        found, truth = estimated(rng, own, whole.rows(np.flatnonzero(outer == fold)), population)
        parts += found
        truths.append(truth)
    return parts, np.mean(truths, axis=0)


def gains_of(parts: list[Scored]) -> tuple[Gain, ...]:
    """Return what the run would print."""
    return gains(joined(parts), n_folds=len(parts))


def _joined(own: Cohort, test: Cohort, population: Cohort, name: str) -> object:
    """Return a field of three cohorts as one."""
    values = [getattr(one, name) for one in (own, test, population)]
    if name == "delta":
        return values[0]
    if name != "columns":
        return np.concatenate(values)
    return tuple(
        Covariate(
            columns[0].name, np.concatenate([one.texts for one in columns]),
            np.concatenate([one.is_missing for one in columns]),
            None if columns[0].numbers is None else np.concatenate([one.numbers for one in columns]),
        )
        for columns in zip(*values, strict=True)
    )  # fmt: skip
