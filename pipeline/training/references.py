"""References that a head must beat: scikit-learn's classifiers on the same embeddings, and the most frequent class."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hoarfrost.training import Rows

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MAJORITY = "majority class"
LOGISTIC_REGRESSION = "logistic regression"
N_NEIGHBOURS = 20
MAX_ITERATIONS = 2_000
MOST_TRAINED = 5_000
FEWEST_FITTED = 10  # of each class; a random draw might miss a rare one


def reference_probabilities(x: Rows, y: Ints, train: Ints, rows: Ints, *, only: str | None = None) -> dict[str, Floats]:
    """Fit each reference on training rows, at most `MOST_TRAINED` of them, and return its probabilities for others.

    Parameters
    ----------
    x : Rows
        Embeddings (n, D).
    y : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 (unknown)
        Each class must occur in the training rows; each label present and absent.
    train : ndarray (t,) int64
    rows : ndarray (m,) int64
    only : str, optional
        The name of the only reference to fit.

    Returns
    -------
    dict of ndarray (m, C) float64, by the reference's name
        Each of several labels is learnt separately.
    """
    train = fitted_rows(y, train)
    x_train = np.empty((len(train), x.n_features))  # in float64: with float32 the discriminant's do not sum to one
    for places, part in x.blocks(train):
        x_train[places] = part.cpu().numpy()
    if y.ndim == 1:
        models = [_fitted(x_train, y[train], only)]
    else:
        known = [y[train, label] >= 0 for label in range(y.shape[1])]
        models = [_fitted(x_train[rows], y[train[rows], label], only) for label, rows in enumerate(known)]
    n_classes = int(y.max()) + 1 if y.ndim == 1 else y.shape[1]
    found = {name: np.empty((len(rows), n_classes)) for name in models[0]}
    for places, part in x.blocks(rows):
        x_part = part.cpu().numpy().astype(np.float64)
        for name, probabilities in found.items():
            predicted = [of_label[name](x_part) for of_label in models]
            probabilities[places] = predicted[0] if y.ndim == 1 else np.stack([p[:, 1] for p in predicted], axis=1)
    return found


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


def _fitted(x_train: Floats, y_train: Ints, only: str | None) -> dict[str, Callable[[Floats], Floats]]:
    """Fit each reference, or one; return functions from embeddings (m, D) to probabilities (m, C)."""
    shares = np.bincount(y_train) / len(y_train)
    fitted: dict[str, Callable[[Floats], Floats]] = {MAJORITY: lambda x: np.tile(shares, (len(x), 1))}
    for name, classifier in _classifiers(len(y_train)).items():
        if only not in {None, name}:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about collinear columns, or too few iterations
            model: Any = classifier.fit(x_train, y_train)
        fitted[name] = model.predict_proba
    return fitted if only is None else {only: fitted[only]}


def _classifiers(n_train: int) -> "dict[str, ClassifierMixin]":
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n_neighbours = min(N_NEIGHBOURS, n_train)  # its name has the constant: folds differ in size, and are pooled by name
    classifiers = {
        LOGISTIC_REGRESSION: LogisticRegression(max_iter=MAX_ITERATIONS),
        f"{N_NEIGHBOURS} nearest neighbours": KNeighborsClassifier(n_neighbours),
        # Shrunken: with fewer images than features the covariance is singular.
        "linear discriminant": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    }
    return {name: make_pipeline(StandardScaler(), classifier) for name, classifier in classifiers.items()}
