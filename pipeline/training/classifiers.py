"""The classifiers that serve as references: one fit each, in several settings at once."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MOST_NEIGHBOURS = 100
_MAX_ITERATIONS = 2_000


@dataclass(frozen=True)
class Block:
    """Rows to predict: standardised embeddings z (m, D), and squared distances (m, t) to the training rows."""

    z: Floats
    squared: Floats
    bandwidth: float

    @cached_property
    def kernel(self) -> Floats:
        """The radial basis functions, (m, t)."""
        found: Floats = np.exp(self.squared / -self.bandwidth)
        return found

    @cached_property
    def nearest(self) -> Ints:
        """The places of the nearest training rows, the nearest first: (m, at most 100)."""
        return nearest(self.squared)


class Space:
    """The training rows of one fit, standardised by their own moments; with several labels, shared by all of them.

    Parameters
    ----------
    x : ndarray (t, D) float64
    """

    def __init__(self, x: Floats) -> None:
        self._mean, scale = x.mean(axis=0), x.std(axis=0)
        self._scale = np.where(scale > 0, scale, 1.0)
        self.z = (x - self._mean) / self._scale
        self._lengths = np.einsum("ij,ij->i", self.z, self.z)

    def block(self, x: Floats) -> Block:
        """Return rows x (m, D) as what predictions need."""
        return self._block((x - self._mean) / self._scale)

    def _block(self, z: Floats) -> Block:
        squared = z @ self.z.T
        squared *= -2
        squared += self._lengths
        squared += np.einsum("ij,ij->i", z, z)[:, None]
        np.maximum(squared, 0, out=squared)
        # The usual choice ("scale"): the variance of all features together.
        return Block(z, squared, bandwidth=max(float(self._lengths.mean()), 1e-12))

    @cached_property
    def kernel(self) -> Floats:
        """The radial basis functions between training rows, (t, t)."""
        block = self._block(self.z)
        found: Floats = np.divide(block.squared, -block.bandwidth, out=block.squared)  # in place: 200 MB at most
        return np.exp(found, out=found)


@dataclass(frozen=True)
class Problem:
    """What a classifier learns: class numbers y (k,), 0 to C-1, of some places (k,) among the training rows."""

    space: Space
    places: Ints
    y: Ints
    n_classes: int

    @property
    def has_all_rows(self) -> bool:
        """Whether the class of every training row is known."""
        return len(self.places) == len(self.space.z)

    @property
    def z(self) -> Floats:
        """Standardised embeddings (k, D)."""
        found: Floats = self.space.z if self.has_all_rows else self.space.z[self.places]
        return found

    def columns(self, of_all: Floats) -> Floats:
        """Return those columns of (m, t) that belong to rows whose class is known."""
        return of_all if self.has_all_rows else of_all[:, self.places]


Predict = Callable[[Block], Floats]
"""From m rows to (S, m, C) float64: probabilities, or decision values, in each of S settings."""


def sigmoid(decisions: Floats, y: Ints) -> Callable[[Floats], Floats]:
    """Fit a function from decision values (..., C) to probabilities (..., C) on those (n, C) of known classes y (n,)."""
    from sklearn.linear_model import LogisticRegression

    n_classes = decisions.shape[1]
    if len(np.unique(y)) < 2:
        only = np.eye(n_classes)[y[0]]
        return lambda new: np.broadcast_to(only, new.shape)
    model = LogisticRegression(max_iter=_MAX_ITERATIONS).fit(decisions, y)

    def probabilities(new: Floats) -> Floats:
        if not new.size:  # scikit-learn refuses to predict nothing
            return new
        found = model.predict_proba(new.reshape(-1, n_classes))
        return _of_all_classes(found, model.classes_, n_classes, 0.0).reshape(new.shape)

    return probabilities


def nearest(squared: Floats) -> Ints:
    """Return the places of the smallest entries in each row of (m, t), the smallest first: (m, at most 100)."""
    k = min(MOST_NEIGHBOURS, squared.shape[1])
    places = np.argpartition(squared, k - 1, axis=1)[:, :k]
    order = np.argsort(np.take_along_axis(squared, places, axis=1), axis=1, kind="stable")
    found: Ints = np.take_along_axis(places, order, axis=1).astype(np.int64)
    return found


def _of_all_classes(found: Floats, present: Ints, n_classes: int, absent: float) -> Floats:
    """Return columns (m, C) for all classes, `absent` for those that the training rows lack."""
    if len(present) == n_classes:
        return found
    columns = np.full((len(found), n_classes), absent)
    columns[:, present] = found
    return columns


def majority(problem: Problem, settings: Sequence[float]) -> Predict:
    """Return the shares of the classes among the training rows."""
    shares = np.bincount(problem.y, minlength=problem.n_classes) / len(problem.y)
    return lambda block: np.tile(shares, (len(settings), len(block.z), 1))


def logistic_regression(problem: Problem, settings: Sequence[float]) -> Predict:
    """Fit logistic regression with an L2 penalty, for each C in ascending order."""
    from sklearn.linear_model import LogisticRegression

    # From the strongest penalty: each fit starts where the last one ended.
    model, z, y = LogisticRegression(warm_start=True, max_iter=_MAX_ITERATIONS), problem.z, problem.y
    fitted = [copy(model.set_params(C=c).fit(z, y)) for c in settings]  # a fit changes no array, it makes others

    def predict(block: Block) -> Floats:
        found = [_of_all_classes(one.predict_proba(block.z), one.classes_, problem.n_classes, 0.0) for one in fitted]
        return np.stack(found)

    return predict


def support_vectors(problem: Problem, settings: Sequence[float]) -> Predict:
    """Fit a support vector machine with radial basis functions for each C; it returns decision values."""
    from sklearn.svm import SVC

    kernel = problem.columns(problem.space.kernel)
    kernel = kernel if problem.has_all_rows else kernel[problem.places]
    present = np.unique(problem.y)
    # Each class against the rest: the votes of pairs of classes that scikit-learn sums up distinguish classes worse (ROC
    # AUC 0.897 instead of 0.941 on the three classes of BUSI). Of two classes the second is enough.
    learnt = present[len(present) == 2 :]
    weights, offsets = np.zeros((len(problem.y), len(settings), len(learnt))), np.zeros((len(settings), len(learnt)))
    for i, c in enumerate(settings):
        for j, number in enumerate(learnt):
            one = SVC(C=c, kernel="precomputed").fit(kernel, problem.y == number)
            weights[one.support_, i, j], offsets[i, j] = one.dual_coef_[0], one.intercept_[0]

    def predict(block: Block) -> Floats:
        # One product for all settings and classes: scikit-learn's own loops are slower than fitting.
        found = np.moveaxis(
            np.tensordot(problem.columns(block.kernel), weights, axes=1) + offsets, 1, 0
        )  # (S, m, classes)
        found = np.concatenate([-found, found], axis=2) if len(present) == 2 else found
        absent = float(found.min())
        return np.stack([_of_all_classes(one, present, problem.n_classes, absent) for one in found])

    return predict


def neighbours(problem: Problem, settings: Sequence[float]) -> Predict:
    """Return the shares of the classes among the k nearest training rows, for each k up to 100."""
    shares = np.bincount(problem.y, minlength=problem.n_classes) / len(problem.y)
    k = np.minimum(np.array(settings, np.int64), len(problem.y))

    def predict(block: Block) -> Floats:
        places = block.nearest if problem.has_all_rows else nearest(problem.columns(block.squared))
        classes, found = problem.y[places], np.empty((len(k), len(places), problem.n_classes))
        for number, share in enumerate(shares):
            counts = np.cumsum(classes == number, axis=1)[:, k - 1].T  # (S, m)
            # One more neighbour of the usual mixture: no class is impossible because five neighbours lack it.
            found[:, :, number] = (counts + share) / (k[:, None] + 1)
        return found

    return predict


def linear_discriminant(problem: Problem, settings: Sequence[float]) -> Predict:
    """Fit the linear discriminant, with Ledoit and Wolf's shrinkage."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    # Shrunken: with fewer images than features the covariance is singular.
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(problem.z, problem.y)

    def predict(block: Block) -> Floats:
        found = _of_all_classes(model.predict_proba(block.z), model.classes_, problem.n_classes, 0.0)
        return np.tile(found, (len(settings), 1, 1))

    return predict
