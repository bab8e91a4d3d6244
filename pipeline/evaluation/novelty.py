"""The distance of an embedding from those that a head was trained on. NumPy in and out, knows no files."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation.checks import Floats

Embeddings = npt.NDArray[np.float32]

N_DIRECTIONS = 32
_FEW = 4  # times fewer embeddings than values of one
_SMALLEST = 1e-12  # variance of directions of length one: float32 cannot resolve less


@dataclass(frozen=True)
class NoveltyReference:
    """Mean and covariance of the training embeddings, each scaled to length one; no embedding itself is kept.

    Attributes
    ----------
    mean : ndarray (D,) float32
    directions : ndarray (k, D) float32
        Of largest variance, orthonormal.
    variances : ndarray (k,) float32
        Along these.
    rest : float
        The mean variance along all other directions.
    """

    mean: Embeddings
    directions: Embeddings
    variances: Embeddings
    rest: float

    def distances(self, x: Embeddings) -> Floats:
        """Return each embedding's Mahalanobis distance to the training set, (n,) float64 in standard deviations.

        Parameters
        ----------
        x : ndarray (n, D) float32

        Notes
        -----
        Embeddings are scaled to length one first: their length reflects contrast and brightness more than content.
        Measured on BUSI against chest X-rays, this detects better than the distance without scaling, the relative
        distance, and the distance to the 5th nearest training image, which would have to be kept (`make bench`).

        References
        ----------
        Lee et al. (2018), A simple unified framework for detecting out-of-distribution samples, NeurIPS. Mueller and
        Hein (2025), Mahalanobis++, ICML (length one). Chen et al. (2010), IEEE Transactions on Signal Processing
        58(10), 5016-5029 (shrinkage). Tipping and Bishop (1999), Journal of the Royal Statistical Society B 61(3),
        611-622 (few directions and the rest).
        """
        centred = _unit(x) - self.mean  # (n, D) float64
        along = centred @ self.directions.T.astype(np.float64)  # (n, k)
        beside = np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        squares = (along**2 / self.variances).sum(axis=1) + beside / self.rest
        # A sum's last digit depends on how many rows are computed together.
        return np.asarray(np.sqrt(squares).astype(np.float32), np.float64)


def fit_novelty(blocks: Iterable[Embeddings]) -> NoveltyReference:
    """Fit mean and covariance of the training embeddings, in one pass.

    Parameters
    ----------
    blocks : iterable of ndarray (B, D) float32
        At least one row in all.

    Raises
    ------
    ValueError
        If there is no row.
    """
    n, total, products, held = 0, np.zeros(1), np.zeros((1, 1)), list[Floats]()
    for block in blocks:
        held.append(_unit(block))
        n, total = n + len(block), total + held[-1].sum(axis=0)
        if n > len(total) // _FEW:
            products, held = products + sum(unit.T @ unit for unit in held), []
    if not n:
        raise ValueError("there are no embeddings to measure distances from")
    mean = total / n
    if held:  # so few that their singular vectors take a hundredth of the time of D x D eigenvectors
        _, deviations, axes = np.linalg.svd((np.concatenate(held) - mean) / np.sqrt(n), full_matrices=False)
        variances = np.pad(deviations**2, (0, len(mean) - len(deviations)))
    else:
        values, vectors = np.linalg.eigh(products / n - np.outer(mean, mean))
        variances, axes = np.maximum(values[::-1], 0), vectors.T[::-1]
    variances = np.maximum(_shrunken(variances, n), _SMALLEST)  # descending
    k = min(N_DIRECTIONS, len(mean) - 1, len(axes))
    return NoveltyReference(
        mean.astype(np.float32),
        np.ascontiguousarray(axes[:k], np.float32),
        variances[:k].astype(np.float32),
        float(variances[k:].mean()),
    )


def _unit(x: Embeddings) -> Floats:
    """Return embeddings scaled to length one; those of zeros stay."""
    x64 = x.astype(np.float64)
    lengths = np.linalg.norm(x64, axis=1, keepdims=True)
    return np.asarray(x64 / np.where(lengths > 0, lengths, 1))


def _shrunken(variances: Floats, n: int) -> Floats:
    """Return a covariance's eigenvalues shrunk towards their mean, more with fewer samples (oracle approximating)."""
    p, trace, squares = len(variances), variances.sum(), (variances**2).sum()
    spread = (n + 1 - 2 / p) * (squares - trace**2 / p)
    share = min(1.0, ((1 - 2 / p) * squares + trace**2) / spread) if spread > 0 else 1.0
    return np.asarray((1 - share) * variances + share * trace / p)
