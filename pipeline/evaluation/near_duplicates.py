"""Near-duplicates: pairs of images whose embeddings are almost equal, and groups of them. Knows no files."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation.checks import Ints

Floats32 = npt.NDArray[np.float32]

NEAR_DUPLICATE_COSINE = 0.75
N_SHARED_AXES = 8
ROWS_PER_AXIS = 20
FARTHEST = 8.0  # standard deviations
FEWEST_TOGETHER, SHARE_TOGETHER = 10, 0.01  # of the images: no larger group is made
_LEFT_ROWS, _RIGHT_ROWS = 2048, 4096  # a block of products of 32 MiB: large enough for BLAS at full speed
_MOST_KEPT = 200_000  # pairs in memory


@dataclass(frozen=True)
class NearPairs:
    """Pairs of images with a cosine above the threshold.

    Attributes
    ----------
    pairs : ndarray (k, 2) int64
        Places of the images, the lower one first.
    cosines : ndarray (k,) float32
    is_complete : bool
        Whether these are all such pairs. If there were too many, only those remain that connect the images: the closest
        ones that form no cycle.
    """

    pairs: Ints
    cosines: Floats32
    is_complete: bool = True


def near_pairs(x: Floats32, *, threshold: float = NEAR_DUPLICATE_COSINE) -> NearPairs:
    """Find the pairs of images that are almost equal, among all images.

    Parameters
    ----------
    x : ndarray (n, d) float32
        Embeddings, finite.
    threshold : float
        Cosine above which two images are near-duplicates, see `find_leakage`.

    Notes
    -----
    Exact, by blocked matrix products: n^2 d operations, memory of a copy of `x`.
    """
    z = without_shared_axes(x)
    found = NearPairs(np.empty((0, 2), np.int64), np.empty(0, np.float32))
    for rows in _blocks(len(z), _LEFT_ROWS):
        for pairs, cosines in _pairs_above(z, range(rows.start, rows.stop), range(rows.start, len(z)), threshold):
            once = pairs[:, 0] < pairs[:, 1]
            found = NearPairs(
                np.concatenate([found.pairs, pairs[once]]),
                np.concatenate([found.cosines, cosines[once]]),
                found.is_complete,
            )
            if len(found.cosines) > _MOST_KEPT:
                found = connecting_pairs(found, len(z))
    return found


def of_images(found: NearPairs, n: int) -> NearPairs:
    """Return pairs of n images from pairs of their rows: row r is image r modulo n, as it is or in its mirror image.

    Each pair of images is kept once, with its largest cosine; an image is no pair with itself.
    """
    if not (found.pairs >= n).any():
        return found
    pairs = np.sort(found.pairs % n, axis=1)
    order = np.lexsort((-found.cosines, pairs[:, 1], pairs[:, 0]))
    pairs, cosines = pairs[order], found.cosines[order]
    is_first = np.append(True, (np.diff(pairs, axis=0) != 0).any(axis=1)) if len(pairs) else np.empty(0, bool)
    kept = is_first & (pairs[:, 0] != pairs[:, 1])
    return NearPairs(pairs[kept], cosines[kept], found.is_complete)


def connecting_pairs(found: NearPairs, n: int) -> NearPairs:
    """Return the closest pairs that connect the same images without a cycle, fewer than n.

    References
    ----------
    Gower and Ross (1969), Minimum spanning trees and single linkage cluster analysis, Applied Statistics 18(1), 54-64.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    lengths = 2 - found.cosines.astype(np.float64)  # at least 1: a length of zero would be no edge
    tree = minimum_spanning_tree(coo_array((lengths, tuple(found.pairs.T)), shape=(n, n)).tocsr()).tocoo()
    pairs = np.column_stack([tree.row, tree.col]).astype(np.int64)
    return NearPairs(np.sort(pairs, axis=1), (2 - tree.data).astype(np.float32), is_complete=False)


def near_groups(found: NearPairs, n: int) -> Ints:
    """Join near-duplicates into groups of a bounded size.

    Parameters
    ----------
    found : NearPairs
    n : int
        The number of images.

    Returns
    -------
    ndarray (n,) int64
        Equal numbers for images of one group; most are alone.

    Notes
    -----
    The closest pairs are joined first. A pair that would make a group of more than ten images, and of more than 1% of all
    images, is not joined: a chain of images that are each like the next one ends there. Without the bound a film or a
    series of views could become most of a fold.
    """
    most = max(FEWEST_TOGETHER, int(SHARE_TOGETHER * n))
    group = np.arange(n)
    members: dict[int, list[int]] = {}
    edges = connecting_pairs(found, n)
    order = np.lexsort((edges.pairs[:, 1], edges.pairs[:, 0], -edges.cosines))
    for first, second in edges.pairs[order].tolist():
        small, large = sorted((int(group[first]), int(group[second])), key=lambda g: len(members.get(g, [g])))
        joined = members.get(large, [large]) + members.get(small, [small])
        if len(joined) <= most:
            group[members.pop(small, [small])] = large
            members[large] = joined
    return group


def closest_across(
    x: Floats32, splits: npt.NDArray[np.str_], contents: Ints, threshold: float, most: int
) -> tuple[list[tuple[int, int, float]], int]:
    """Return places and cosines of the closest pairs above the threshold in different splits, and the number of all.

    Images of the same `contents` (n,) are not compared.
    """
    # Sorted by split: each pair of splits is then two slices, without a copy.
    order = np.argsort(splits, kind="stable")
    z = without_shared_axes(x[order])
    names, starts = np.unique(splits[order], return_index=True)
    ends = [*starts[1:].tolist(), len(order)]
    ranges = [range(start, end) for start, end in zip(starts.tolist(), ends, strict=True)]
    n_found = 0
    kept = (np.empty((0, 2), np.int64), np.empty(0, np.float32))
    for first, second in combinations(range(len(names)), 2):
        for places, cosines in _pairs_above(z, ranges[first], ranges[second], threshold):
            pairs = order[places]
            different = contents[pairs[:, 0]] != contents[pairs[:, 1]]  # the same bytes are reported already
            n_found += int(different.sum())
            kept = np.concatenate([kept[0], pairs[different]]), np.concatenate([kept[1], cosines[different]])
            if len(kept[1]) > _MOST_KEPT:
                kept = _closest(*kept, most)
    return _listed(*kept, most), n_found


def among_splits(
    found: NearPairs, splits: npt.NDArray[np.str_], contents: Ints, most: int
) -> tuple[list[tuple[int, int, float]], int]:
    """Return the same as `closest_across` from all pairs, found before the images were split."""
    first, second = found.pairs.T
    across = (splits[first] != splits[second]) & (contents[first] != contents[second])
    return _listed(found.pairs[across], found.cosines[across], most), int(across.sum())


def _listed(pairs: Ints, cosines: Floats32, most: int) -> list[tuple[int, int, float]]:
    pairs, cosines = _closest(pairs, cosines, most)
    return [
        (min(pair), max(pair), min(1.0, cosine)) for pair, cosine in zip(pairs.tolist(), cosines.tolist(), strict=True)
    ]


def without_shared_axes(x: Floats32) -> Floats32:
    """Return standardised embeddings without their leading principal axes, with rows of length one.

    Parameters
    ----------
    x : ndarray (n, d) float32

    Returns
    -------
    ndarray (n, d) float32
        A row is zero where nothing remains of an embedding.

    Raises
    ------
    ValueError
        If an embedding is not finite.

    Notes
    -----
    One axis for every twenty rows, at most eight: with few images the leading axes would be all there is.
    """
    if not np.isfinite(x).all():
        raise ValueError("some embeddings are NaN or infinite")
    n = len(x)
    mean = x.mean(axis=0, dtype=np.float64)
    z: Floats32 = x - mean.astype(np.float32)
    # By blocks: float64 for all rows at once would double the memory.
    squares = np.sum([np.square(z[rows], dtype=np.float64).sum(axis=0) for rows in _blocks(n, _LEFT_ROWS)], axis=0)
    deviation = np.sqrt(squares / max(n, 1))
    # A constant column becomes zero.
    z /= np.where(deviation > 1e-5 * np.abs(mean), deviation, np.inf).astype(np.float32)
    # A unit that is active in two images only must not make them similar on its own.
    np.clip(z, -FARTHEST, FARTHEST, out=z)
    n_axes = min(N_SHARED_AXES, n // ROWS_PER_AXIS)
    if n_axes:
        if 4 * n <= z.shape[1]:  # in a hundredth of the time
            axes = np.linalg.svd(z, full_matrices=False)[2][:n_axes].T  # (d, n_axes)
        else:
            axes = np.linalg.eigh(z.T @ z)[1][:, -n_axes:]
        for rows in _blocks(n, _LEFT_ROWS):
            z[rows] -= (z[rows] @ axes) @ axes.T
    lengths = np.sqrt(np.einsum("ij,ij->i", z, z))[:, None]
    # Of an image like the mean, or of the axes alone, only rounding errors remain: these have no direction.
    z /= np.where(lengths > 1e-3, lengths, np.inf)
    return z


def _pairs_above(z: Floats32, left: range, right: range, threshold: float) -> Iterator[tuple[Ints, Floats32]]:
    """Yield the pairs of places (k, 2), one of each range, with a product above the threshold, and the products."""
    products = np.empty((_LEFT_ROWS, _RIGHT_ROWS), np.float32)
    for a in _blocks(len(left), _LEFT_ROWS, left.start):
        for b in _blocks(len(right), _RIGHT_ROWS, right.start):
            block = products[: a.stop - a.start, : b.stop - b.start]
            np.matmul(z[a], z[b].T, out=block)
            if block.max() > threshold:
                rows, columns = np.nonzero(block > threshold)
                yield np.column_stack([rows + a.start, columns + b.start]), block[rows, columns]


def _blocks(n: int, size: int, start: int = 0) -> Iterator[slice]:
    for begin in range(start, start + n, size):
        yield slice(begin, min(begin + size, start + n))


def _closest(pairs: Ints, cosines: Floats32, most: int) -> tuple[Ints, Floats32]:
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -cosines))[:most]
    return pairs[order], cosines[order]
