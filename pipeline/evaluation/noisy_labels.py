"""Labels that may be wrong: images whose out-of-fold probability contradicts their label most."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation.checks import Floats, Ints

MOST_LISTED = 20


@dataclass(frozen=True)
class SuspectLabel:
    """An image whose out-of-fold prediction contradicts its label.

    `p_label` and `p_predicted` are the probabilities of both from a head that was not trained on the image. `margin` is
    their difference, in (0, 1]. `confident` is True if the head is surer of the other class than on average for images
    with that label.
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
    y: Ints, probabilities: Floats, classes: Sequence[str], paths: Sequence[str], splits: Sequence[str],
    *, most: int = MOST_LISTED,
) -> tuple[SuspectLabel, ...]:  # fmt: skip
    """Rank images by how much their out-of-fold probability contradicts their label.

    Parameters
    ----------
    y : ndarray (n,) int64, values 0 to C-1
    probabilities : ndarray (n, C) float64
        Out of fold: from heads that were not trained on the image. Rows of NaN (images of no fold) are skipped.
    classes : sequence of str, length C
    paths, splits : sequences of str, length n
        Of each image.
    most : int
        Number of images to list.

    Returns
    -------
    tuple of SuspectLabel
        Only images that are predicted to be of another class: the largest margin first, and equal margins in the
        given order.

    Raises
    ------
    ValueError
        If the shapes differ, or a label is out of range.

    Notes
    -----
    The normalised margin of confident learning. A contradiction is no proof: hard images contradict too. With
    probabilities of a head that was trained on these images the list means nothing.

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
    own, predicted, other = p[np.arange(len(rows)), labels], p.argmax(axis=1), p.max(axis=1)
    # The head's mean probability of a class over the images with this label; infinite if there are none.
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
