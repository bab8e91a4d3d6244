"""What a head must beat: scikit-learn's classifiers on the same embeddings, and the most frequent class."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MAJORITY = "majority class"
LOGISTIC_REGRESSION = "logistic regression"
N_NEIGHBOURS = 20
MAX_ITERATIONS = 2_000


def reference_probabilities(
    x_train: npt.NDArray[np.float32], y_train: Ints, x: npt.NDArray[np.float32]
) -> dict[str, Floats]:
    """Fit each reference on the training split, and give its class probabilities.

    Parameters
    ----------
    x_train : ndarray (n, 512) float32
    y_train : ndarray (n,) int64, values 0 to C-1, each present
    x : ndarray (m, 512) float32

    Returns
    -------
    dict of ndarray (m, C) float64, by the reference's name
    """
    # In float64: with float32 the discriminant's probabilities do not sum to one.
    x_train, x = x_train.astype(np.float64), x.astype(np.float64)
    found = {MAJORITY: np.tile(np.bincount(y_train) / len(y_train), (len(x), 1))}
    for name, make in _classifiers(len(y_train)).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of columns that are collinear, or of iterations that are used up
            model: Any = make().fit(x_train, y_train)
            found[name] = np.asarray(model.predict_proba(x), np.float64)
    return found


def _classifiers(n_train: int) -> "dict[str, Callable[[], ClassifierMixin]]":
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n_neighbours = min(N_NEIGHBOURS, n_train)  # the name stays: folds differ by an image, and are pooled by name
    return {
        LOGISTIC_REGRESSION: lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS)),
        f"{N_NEIGHBOURS} nearest neighbours": lambda: make_pipeline(
            StandardScaler(), KNeighborsClassifier(n_neighbours)
        ),
        # Shrunken: with fewer images than features the covariance is singular.
        "linear discriminant": lambda: make_pipeline(
            StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        ),
    }
