"""Leakage: what two splits share although they must not. Knows no files."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation.checks import Ints, numbered
from hoarfrost.evaluation.near_duplicates import (
    NEAR_DUPLICATE_COSINE,
    Floats32,
    NearPairs,
    among_splits,
    closest_across,
)

MOST_LISTED = 100

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
class DifferentLabels:
    """Two images of one group of near-duplicates, or of the same bytes, with their labels."""

    first: str
    first_label: str
    second: str
    second_label: str


@dataclass(frozen=True)
class Conflicting:
    """Images with the same bytes and different labels: `n_images` of `n_contents` contents, a pair of each listed."""

    n_images: int
    n_contents: int
    pairs: tuple[DifferentLabels, ...]

    @property
    def text(self) -> str:
        """The counts, and the first pair."""
        one = self.pairs[0]
        contents = "1 image" if self.n_contents == 1 else f"{self.n_contents:,} images"
        return (
            f"{self.n_images:,} files are {contents} (the same bytes) under different labels, such as {one.first} "
            f"({one.first_label or 'none'}) and {one.second} ({one.second_label or 'none'}). At least one of two such labels "
            "is wrong."
        )

    @property
    def warning(self) -> str:
        """The same, with what it is and the way out."""
        return f"Conflicting labels: {self.text} Correct the labels, or remove these images."


@dataclass(frozen=True)
class KeptTogether:
    """Near-identical images that no split and no fold divides.

    Attributes
    ----------
    n_images, n_groups, largest : int
        Images in groups of at least two; the groups; the images of the largest one.
    n_with_different_labels : int
        Groups whose images do not have the same label.
    different_labels : tuple of DifferentLabels
        A pair of images for each of them, the first hundred.
    """

    n_images: int
    n_groups: int
    largest: int
    n_with_different_labels: int
    different_labels: tuple[DifferentLabels, ...]


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
    near_duplicates_mode : str
        "group", "warn" or "ignore", as `--near-duplicates`.
    together : KeptTogether or None
        The near-duplicates that were kept together; None if they were not.
    conflicting : Conflicting or None
        The same bytes under different labels; None if there are none.
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
    near_duplicates_mode: str = "warn"
    together: KeptTogether | None = None
    conflicting: Conflicting | None = None

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
    near: NearPairs | None = None,
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
    near : NearPairs, optional
        The near-duplicates among all images at the same threshold. Embeddings are then not compared again, unless these
        are not complete.
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
    variance, are projected out ("all but the top"): the rest distinguishes one image from another.

    Measured with an ImageNet-trained ResNet18 in bfloat16 (float32 differs little): the share of 100 images of
    BUSI that are found after a change, and the pairs that are found in whole datasets.

    ============================================  =====  =====  =====  =====  =====  =====
    cosine above                                   0.60   0.65   0.70   0.75   0.80   0.85
    ============================================  =====  =====  =====  =====  =====  =====
    JPEG of quality 90                             1.00   1.00   1.00   1.00   1.00   1.00
    JPEG of quality 50                             1.00   1.00   1.00   0.99   0.94   0.89
    brighter by a fifth                            1.00   1.00   1.00   1.00   1.00   1.00
    half the width and height                      1.00   1.00   1.00   0.98   0.88   0.62
    cropped by 3%                                  1.00   1.00   0.96   0.87   0.64   0.34
    cropped by 6%                                  0.98   0.86   0.77   0.46   0.22   0.04
    cropped by 10%                                 0.80   0.65   0.45   0.13   0.04   0.00
    mirrored                                       0.96   0.87   0.58   0.38   0.14   0.01
    rotated by 3 degrees                           0.47   0.31   0.10   0.05   0.01   0.00
    BUSI, 780 images: pairs                         221    212    206    194    176    152
    3,166 chest films, 28 x 28 pixels: pairs         78     44     23      6      0      0
    demo, 480 images: pairs                           0      0      0      0      0      0
    ============================================  =====  =====  =====  =====  =====  =====

    By eye, all 39 pairs of BUSI between 0.70 and 0.82 are the same scan: with other markers, cropped or retouched. Of the
    pairs below 0.66, some are another plane of the same lesion.

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
    pairs: list[tuple[int, int, float]] = []
    n_near = 0
    if near is not None and near.is_complete:
        pairs, n_near = among_splits(near, splits, numbers, most_listed)
    elif x is not None:
        pairs, n_near = closest_across(x, splits, numbers, threshold, most_listed)

    def where(first: int, second: int) -> tuple[str, str, str, str]:
        return names[first], str(splits[first]), names[second], str(splits[second])

    return Leakage(
        len(same_patient),
        tuple(SharedPair(f"the patient {patients[a]!r}", *where(a, b), n) for a, b, n in same_patient[:most_listed]),
        len(same_bytes), tuple(SharedPair("the same bytes", *where(a, b), n) for a, b, n in same_bytes[:most_listed]),
        n_near, tuple(SimilarPair(*where(a, b), cosine) for a, b, cosine in pairs), threshold,
        not_compared="there are no embeddings" if x is None and near is None else "",
    )  # fmt: skip


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
