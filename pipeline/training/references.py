"""References that a head must beat: scikit-learn's classifiers, their settings chosen by out-of-fold predictions."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hoarfrost.training.classifiers import (
    Block,
    Predict,
    Problem,
    Space,
    linear_discriminant,
    logistic_regression,
    majority,
    neighbours,
    sigmoid,
    support_vectors,
)
from hoarfrost.training.records import Fold
from hoarfrost.training.rows import Rows, gathered

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MAJORITY = "majority class"
LOGISTIC_REGRESSION = "logistic regression"
PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)  # C: the smaller, the stronger
SOFTNESS = (1.0, 3.0, 10.0)
NEIGHBOURS = (5.0, 10.0, 20.0, 50.0, 100.0)
NOTHING_TO_CHOOSE = (0.0,)
MOST_TRAINED = 5_000
FEWEST_FITTED = 10  # of each class; a random draw might miss a rare one
_BLOCK_ROWS = 2_048  # predicted at once: their distances to all training rows take 80 MB at most
_LEAST = 1e-15  # the logarithm of zero is infinite

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """A classifier, and the settings to choose from.

    `words` describe a setting. Without `is_probabilistic` it returns decision values.
    """

    name: str
    fit: Callable[[Problem, Sequence[float]], Predict]
    settings: tuple[float, ...] = NOTHING_TO_CHOOSE
    words: str = ""
    is_probabilistic: bool = True

    def settings_for(self, n_train: int) -> tuple[float, ...]:
        """Return the settings that make sense with this many training rows."""
        if self.settings is not NEIGHBOURS:
            return self.settings
        # More than half of all images are no neighbourhood.
        return tuple(k for k in NEIGHBOURS if 2 * k <= n_train) or (float(max(1, n_train // 2)),)

    def fitted(self, problem: Problem, settings: Sequence[float]) -> Predict:
        """Fit the classifier in each setting; of a single class there is nothing to learn but its share."""
        return (self.fit if len(np.unique(problem.y)) > 1 else majority)(problem, settings)

    def describe(self, chosen: Sequence[float]) -> str:
        """Return the settings that were chosen, one for each label, in words."""
        low, high = f"{min(chosen):g}", f"{max(chosen):g}"
        return self.words.format(low if low == high else f"{low} to {high}")


LINEAR = Reference(LOGISTIC_REGRESSION, logistic_regression, PENALTIES, "C = {}")
REFERENCES = (
    Reference(MAJORITY, majority),
    LINEAR,
    Reference("support vector machine", support_vectors, SOFTNESS, "C = {}", is_probabilistic=False),
    Reference("nearest neighbours", neighbours, NEIGHBOURS, "{} neighbours"),
    Reference("linear discriminant", linear_discriminant),
)
"""All references, in the order of tables."""

_Grids = Mapping[Reference, Sequence[Sequence[float]]]  # the settings to fit, for each label


@dataclass(frozen=True)
class ReferenceFit:
    """One reference, in the setting that predicted best what it had not seen.

    Attributes
    ----------
    name : str
    setting : str
        "C = 0.01", "20 neighbours", "C = 0.01 to 0.1" where labels differ; empty if there is nothing to choose.
    n_train : int
        Images of the last fit.
    out_of_fold : ndarray (n, C) float64
        Probabilities by the fit of the fold that held an image out; NaN where none did.
    probabilities : ndarray (n, C) float64
        Probabilities by the last fit; NaN for rows that were not requested.
    """

    name: str
    setting: str
    n_train: int
    out_of_fold: Floats
    probabilities: Floats


def fit_references(
    x: Rows, y: Ints, folds: Sequence[Fold], train: Ints, rows: Ints, *, kinds: Sequence[Reference] = REFERENCES
) -> list[ReferenceFit]:
    """Fit each reference in the setting that has the lowest pooled log loss over folds.

    Parameters
    ----------
    x : Rows
        Embeddings (n, D). Each fit standardises them by its own training rows.
    y : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 (unknown)
        Each of several labels is learnt separately, in a setting of its own.
    folds : sequence of Fold
        Every setting is fitted on the `train` of each fold and predicts its `val`. No row is in two `val`.
    train : ndarray (t,) int64
        The rows of the last fit, in the chosen setting.
    rows : ndarray (m,) int64
        The rows that the last fit predicts.
    kinds : sequence of Reference
        Which to fit.

    Returns
    -------
    list of ReferenceFit
        A reference that cannot be fitted on so few images is missing, and a warning states it. A class that is absent
        from the rows of a fit has probability 0 there.

    Notes
    -----
    Each fit takes at most `MOST_TRAINED` rows. A sigmoid (for several classes, multinomial) makes probabilities of a
    support vector machine's decision values. It is fitted on decision values of held-out images: for an image in one of
    several folds on those of the other folds, otherwise on all.

    References
    ----------
    Platt (1999), Probabilistic outputs for support vector machines, Advances in Large Margin Classifiers, 61-74.
    """
    labels = list(y.T) if y.ndim == 2 else [y]
    problems = _Problems(x, y, labels, 2 if y.ndim == 2 else int(y.max()) + 1)
    fewest = min(int((label[fitted_rows(y, fold.train)] >= 0).sum()) for fold in folds for label in labels)
    grids = {one: [one.settings_for(fewest)] * len(labels) for one in kinds}
    pooled = {one: problems.unpredicted(len(each[0]), len(y)) for one, each in grids.items()}
    for fold in folds:
        for one, found in problems.predictions(fold.train, fold.val, grids).items():
            pooled[one][:, :, fold.val] = found
    chosen = {
        one: [_choose(one, *each, folds) for each in zip(grids[one], found, labels, strict=True)]
        for one, found in pooled.items()
        if all(np.isfinite(found[:, :, fold.val]).all() for fold in folds)
    }
    settings = {one: [(each.setting,) for each in choices] for one, choices in chosen.items()}
    fits = []
    for one, found in problems.predictions(train, rows, settings).items():
        probabilities = problems.unpredicted(1, len(y))
        for label, each in enumerate(chosen[one]):
            probabilities[label, 0, rows] = each.probabilities(found[label, 0])
        if np.isfinite(probabilities[:, :, rows]).all():
            words, n_train = one.describe([each.setting for each in chosen[one]]), len(fitted_rows(y, train))
            out_of_fold = problems.columns(np.stack([each.out_of_fold for each in chosen[one]]))
            fits.append(ReferenceFit(one.name, words, n_train, out_of_fold, problems.columns(probabilities[:, 0])))
    for name in {one.name for one in kinds} - {fit.name for fit in fits}:
        logger.warning("%s: left out of the references, because it cannot be fitted on so few images", name)
    return fits


def fitted_rows(y: Ints, train: Ints) -> Ints:
    """Return the training rows to fit references on: all, or a random part where all would take hours.

    The part always has a few images of each class; with several labels, a few with and without each.
    """
    if len(train) <= MOST_TRAINED:
        return train
    drawn = np.random.default_rng(0).permutation(train)
    kept = np.unique(
        [
            place
            for column in y[drawn].reshape(len(drawn), -1).T
            for value in np.unique(column)
            for place in np.flatnonzero(column == value)[:FEWEST_FITTED]
        ]
    )
    others = np.setdiff1d(np.arange(len(drawn)), kept)[: max(0, MOST_TRAINED - len(kept))]
    return np.sort(drawn[np.concatenate([kept, others])])


@dataclass(frozen=True)
class _Chosen:
    """The setting for one label, its out-of-fold probabilities (n, C), and what makes probabilities of later values."""

    setting: float
    out_of_fold: Floats
    probabilities: Callable[[Floats], Floats]


def _choose(reference: Reference, grid: Sequence[float], found: Floats, y: Ints, folds: Sequence[Fold]) -> _Chosen:
    """Choose the setting with the lowest log loss of pooled predictions (S, n, C), NaN where no fold held a row out."""
    known = [fold.val[y[fold.val] >= 0] for fold in folds]
    rows = np.concatenate(known)
    probabilities = (
        found if reference.is_probabilistic else np.stack([_calibrated(one, y, folds, known) for one in found])
    )
    losses = -np.log(np.maximum(probabilities[:, rows, y[rows]], _LEAST)).mean(axis=1)
    best = int(losses.argmin())
    last = (lambda p: p) if reference.is_probabilistic else sigmoid(found[best, rows], y[rows])
    return _Chosen(grid[best], probabilities[best], last)


def _calibrated(decisions: Floats, y: Ints, folds: Sequence[Fold], known: Sequence[Ints]) -> Floats:
    """Return probabilities (n, C) of decision values by sigmoids that were fitted on other folds' values, if there are."""
    found = np.full_like(decisions, np.nan)
    for number, fold in enumerate(folds):
        others = np.concatenate([rows for i, rows in enumerate(known) if i != number] or list(known))
        found[fold.val] = sigmoid(decisions[others], y[others])(decisions[fold.val])
    return found


@dataclass(frozen=True)
class _Problems:
    """The embeddings, the labels as `fit_references` takes them, and as L columns (n,) of C classes each."""

    x: Rows
    y: Ints
    labels: Sequence[Ints]
    n_classes: int

    def unpredicted(self, n_settings: int, n_rows: int) -> Floats:
        """Return predictions (L, S, n, C) of NaN, to be filled in."""
        return np.full((len(self.labels), n_settings, n_rows, self.n_classes), np.nan)

    def columns(self, probabilities: Floats) -> Floats:
        """Return (L, n, C) as one column for each class, or for each label."""
        found: Floats = probabilities[0] if self.y.ndim == 1 else probabilities[:, :, 1].T
        return found

    def predictions(self, train: Ints, rows: Ints, grids: _Grids) -> dict[Reference, Floats]:
        """Fit each reference for each label in S settings; return predictions (L, S, m, C), NaN where that is impossible."""
        if not len(rows):
            return {one: self.unpredicted(len(each[0]), 0) for one, each in grids.items()}
        train = fitted_rows(self.y, train)
        # In float64: with float32 the discriminant's probabilities do not sum to one.
        space, fits = Space(gathered(self.x, train).astype(np.float64)), []
        for number, label in enumerate(self.labels):
            places = np.flatnonzero(label[train] >= 0)
            problem = Problem(space, places, label[train[places]], self.n_classes)
            for one, each in grids.items():
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # about collinear columns, or too few iterations
                        fits.append((one, number, one.fitted(problem, each[number])))
                except (ValueError, np.linalg.LinAlgError) as error:
                    logger.debug("%s: %s", one.name, error)
        found = {one: self.unpredicted(len(each[0]), len(rows)) for one, each in grids.items()}
        for places, block in _blocks(self.x, rows, space):
            for one, number, predict in fits:
                found[one][number][:, places] = predict(block)
        return found


def _blocks(x: Rows, rows: Ints, space: Space) -> Iterator[tuple[Ints, Block]]:
    """Yield places in `rows` and what predictions need of these rows, a few thousand at once."""
    for places, part in x.blocks(rows):
        for start in range(0, len(places), _BLOCK_ROWS):
            some = slice(start, start + _BLOCK_ROWS)
            yield places[some], space.block(part[some].cpu().numpy().astype(np.float64))
