"""Leakage: what two splits share although they must not. Knows no files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation.checks import Ints, numbered

Floats32 = npt.NDArray[np.float32]

NEAR_DUPLICATE_COSINE = 0.9
N_SHARED_AXES = 8
ROWS_PER_AXIS = 20
FARTHEST = 8.0  # standard deviations
MOST_LISTED = 100
_LEFT_ROWS, _RIGHT_ROWS = 2048, 4096  # a block of products of 32 MiB: large enough for BLAS at full speed
_MOST_KEPT = 100_000  # pairs in memory; with more only the closest stay

_Shared = tuple[int, int, int]  # two places, and how many images have it in common


@dataclass(frozen=True)
class SharedPair:
    """Two images in different splits that have `what` in common ("the patient 'p1'", "the same bytes").

    There is one pair for each shared patient or content; `n_images` of it are in the splits.
    """

    what: str
    first: str
    first_split: str
    second: str
    second_split: str
    n_images: int


@dataclass(frozen=True)
class SimilarPair:
    """Two images in different splits, and the cosine of their standardised embeddings."""

    first: str
    first_split: str
    second: str
    second_split: str
    cosine: float


@dataclass(frozen=True)
class Leakage:
    """The patients, bytes and near-duplicates that splits share.

    Attributes
    ----------
    n_patients, n_contents : int
        Patients, and images by their bytes, in more than one split.
    patients, contents : tuple of SharedPair
        A pair of images for each of them, the first hundred.
    n_near_duplicates : int
        Pairs of different bytes in two splits with a cosine above `threshold`; all are counted.
    near_duplicates : tuple of SimilarPair
        The closest hundred, the closest first.
    allowed : bool
        Whether training continued although patients or bytes are shared (`--allow-leakage`).
    not_compared : str
        Why there was no search for near-duplicates; empty if there was.
    """

    n_patients: int
    patients: tuple[SharedPair, ...]
    n_contents: int
    contents: tuple[SharedPair, ...]
    n_near_duplicates: int
    near_duplicates: tuple[SimilarPair, ...]
    threshold: float
    allowed: bool = False
    not_compared: str = ""

    @property
    def refused(self) -> bool:
        """Whether patients or bytes are shared: test scores would not hold for new patients."""
        return bool(self.n_patients or self.n_contents)


def find_leakage(
    x: Floats32 | None,
    splits: npt.NDArray[np.str_],
    contents: Sequence[object],
    names: Sequence[str],
    patients: Sequence[str] | None = None,
    *,
    threshold: float = NEAR_DUPLICATE_COSINE,
    most_listed: int = MOST_LISTED,
) -> Leakage:
    """Find patients, bytes and near-duplicates that are in two splits.

    Parameters
    ----------
    x : ndarray (n, d) float32 or None
        Embeddings, finite; without them there is no search for near-duplicates.
    splits : ndarray (n,) of str
    contents : sequence of length n
        Equal for images of the same bytes: their keys, or their rows in the cache.
    names : sequence of str, length n
        The images' names in lists: their paths.
    patients : sequence of str, length n, optional
        An empty text is an unknown patient, who is in no other split.
    threshold : float
        Cosine above which two images are near-duplicates, see Notes.
    most_listed : int
        Pairs of each kind to list; all are counted.

    Raises
    ------
    ValueError
        If the lengths differ, an embedding is not finite, or the threshold is not between 0 and 1.

    Notes
    -----
    Raw embeddings of one modality are nearly parallel (median cosine of two breast ultrasounds: 0.995). So columns are
    standardised, and the eight leading principal axes, which represent the kind of image and have some 85% of the
    variance, are projected out ("all but the top"): the rest distinguishes one image from another. Measured with untrained
    weights: a JPEG of quality 90 has a cosine of at least 0.98 to its original, of quality 50 at least 0.94, an image
    scaled to three quarters at least 0.94. The closest images of two patients of the demo set have 0.37; of 5,000,000
    pairs of chest radiographs of 28 x 28 pixels only equal ones are above 0.88. In the public breast ultrasound set BUSI
    of 780 images, 63 pairs are above 0.9: copies of a scan, with markers added or cropped again, some with another label.
    A crop by 6% changes an embedding more (0.3 to 0.9) and may be missed.

    All pairs across splits are compared by blocked matrix products: exact, 2 n_a n_b d operations, memory of two copies of
    `x` at most.

    References
    ----------
    Mu and Viswanath (2018), All-but-the-Top, ICLR. Barz and Denzler (2020), Do we train on test data? Journal of
    Imaging 6(6), 41.
    """
    n = len(splits) if x is None else len(x)
    patients = [""] * n if patients is None else patients
    if {len(splits), len(contents), len(names), len(patients)} != {n}:
        raise ValueError(f"{n} embeddings, but {len(splits)} splits, {len(contents)} contents or other patients")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1, not {threshold}")
    numbers = numbered(contents)
    same_bytes = _shared(numbers, splits)
    known = np.array([patient != "" for patient in patients], bool)
    same_patient = _shared(np.where(known, numbered(patients), -1), splits)
    near, n_near = ([], 0) if x is None else _near_duplicates(x, splits, numbers, threshold, most_listed)

    def where(first: int, second: int) -> tuple[str, str, str, str]:
        return names[first], str(splits[first]), names[second], str(splits[second])

    return Leakage(
        len(same_patient),
        tuple(SharedPair(f"the patient {patients[a]!r}", *where(a, b), n) for a, b, n in same_patient[:most_listed]),
        len(same_bytes), tuple(SharedPair("the same bytes", *where(a, b), n) for a, b, n in same_bytes[:most_listed]),
        n_near, tuple(SimilarPair(*where(a, b), cosine) for a, b, cosine in near), threshold,
        not_compared="there are no embeddings" if x is None else "",
    )  # fmt: skip


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
        _, vectors = np.linalg.eigh(z.T @ z)  # ascending
        axes = vectors[:, -n_axes:]  # (d, n_axes)
        for rows in _blocks(n, _LEFT_ROWS):
            z[rows] -= (z[rows] @ axes) @ axes.T
    lengths = np.sqrt(np.einsum("ij,ij->i", z, z))[:, None]
    # Of an image like the mean, or of the axes alone, only rounding errors remain: these have no direction.
    z /= np.where(lengths > 1e-3, lengths, np.inf)
    return z


def _shared(numbers: Ints, splits: npt.NDArray[np.str_]) -> list[_Shared]:
    """Return for each number (at least 0) in several splits its first two places, and how many it has."""
    order = np.argsort(numbers, kind="stable")
    order = order[numbers[order] >= 0]
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    found = []
    for places in np.split(order, starts[1:]):
        others = places[splits[places] != splits[places[:1]]]
        if len(others):
            found.append((int(places[0]), int(others[0]), len(places)))
    return sorted(found)


def _near_duplicates(
    x: Floats32, splits: npt.NDArray[np.str_], contents: Ints, threshold: float, most_listed: int
) -> tuple[list[tuple[int, int, float]], int]:
    """Return places and cosines of the closest pairs above the threshold across splits, and their number."""
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
                kept = _closest(*kept, most_listed)
    pairs, cosines = _closest(*kept, most_listed)
    listed = zip(pairs.tolist(), cosines.tolist(), strict=True)
    return [(min(pair), max(pair), min(1.0, cosine)) for pair, cosine in listed], n_found


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
