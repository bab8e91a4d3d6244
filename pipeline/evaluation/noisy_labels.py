"""Which labels may be wrong: images whose out-of-fold probability contradicts their label most."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MOST_LISTED = 20

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SuspectLabel:
    """An image whose label its out-of-fold prediction contradicts.

    `p_label` and `p_predicted` are the probabilities of both from a head that never saw the image. `margin` is their
    difference, in (0, 1]. `confident` says that the head is surer of the other class than it is on average of images
    that do bear that label.
    """

    path: str
    split: str
    label: str
    predicted: str
    p_label: float
    p_predicted: float
    margin: float
    confident: bool


def suspect_labels(
    y: Ints,
    probabilities: Floats,
    classes: Sequence[str],
    paths: Sequence[str],
    splits: Sequence[str],
    *,
    most: int = MOST_LISTED,
) -> tuple[SuspectLabel, ...]:
    """Rank images by how much their out-of-fold probability contradicts their label.

    Parameters
    ----------
    y : ndarray (n,) int64, values 0 to C-1
    probabilities : ndarray (n, C) float64
        Out of fold: from heads that never saw the image. Rows of NaN (images of no fold) are left out.
    classes : sequence of str, length C
    paths, splits : sequences of str, length n
        Of each image.
    most : int
        Images to list.

    Returns
    -------
    tuple of SuspectLabel
        Only images that are predicted to be of another class: the largest margin first, and among equal
        margins in the given order.

    Raises
    ------
    ValueError
        If the arrays do not fit one another.

    Notes
    -----
    The normalised margin of confident learning. A contradiction is no proof: hard images contradict too. With
    probabilities of the training split's own head, which has seen the labels, the list means nothing.

    References
    ----------
    Northcutt, Jiang and Chuang (2021), Journal of Artificial Intelligence Research 70, 1373-1411.
    """
    y, probabilities = np.asarray(y), np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or len(probabilities) != len(y):
        raise ValueError(f"{len(y)} labels, but probabilities of shape {probabilities.shape}")
    n_classes = probabilities.shape[1]
    if not np.isin(y, np.arange(n_classes)).all():
        raise ValueError(f"y holds values other than 0 to {n_classes - 1}")
    rows = np.flatnonzero(np.isfinite(probabilities).all(axis=1))
    if not len(rows):
        return ()
    p, labels = probabilities[rows], y[rows]
    own = p[np.arange(len(rows)), labels]
    predicted = p.argmax(axis=1)
    other = p.max(axis=1)
    # How sure a head is of a class, on average of the images that bear it; of a class that none bears nothing is sure.
    usual = np.array([own[labels == c].mean() if (labels == c).any() else np.inf for c in range(n_classes)])
    order = np.argsort(own - other, kind="stable")
    order = order[(own < other)[order]][:most]
    return tuple(
        SuspectLabel(
            paths[rows[i]], str(splits[rows[i]]), classes[labels[i]], classes[predicted[i]],
            float(own[i]), float(other[i]), float(other[i] - own[i]), bool(other[i] >= usual[predicted[i]]),
        )
        for i in order
    )  # fmt: skip
