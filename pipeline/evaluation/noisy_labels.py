"""Labels that may be wrong: images whose out-of-fold probability contradicts their label most."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.evaluation.metrics import NO_DECISION, Decision, Sample

MOST_LISTED = 20
SMALLEST_ROOM = 1e-9  # between a threshold and a probability of one


@dataclass(frozen=True)
class SuspectLabel:
    """An image whose out-of-fold prediction contradicts its label.

    `p_label` and `p_predicted` are the probabilities of both from a head that was not trained on the image. `margin`, in
    [0, 1], is how far the predicted class is beyond the decision: at a threshold of 0.5, and with more than two classes,
    the difference of both probabilities. `confident` is True if the head is surer of the other class than on average for
    images with that label.
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
    *, most: int = MOST_LISTED, decision: Decision = NO_DECISION,
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
    decision : Decision, optional
        Thresholds of class 1 of two. Without them the most probable class is predicted.

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
    each = np.arange(len(rows))
    predicted = Sample(labels, p, decision.drawn(rows)).predicted
    own, other = p[each, labels], p[each, predicted]
    margin = other - own
    if (limits := decision.drawn(rows).limits) is not None:
        needed = np.where(predicted == 1, limits[:, 0], 1 - limits[:, 0])  # of the predicted class, to be predicted
        margin = (other - needed) / np.maximum(1 - needed, SMALLEST_ROOM)
    # The head's mean probability of a class over the images with this label; infinite if there are none.
    usual = np.array([own[labels == c].mean() if (labels == c).any() else np.inf for c in range(n_classes)])
    order = np.argsort(-margin, kind="stable")
    order = order[(predicted != labels)[order]][:most]
    return tuple(
        SuspectLabel(
            paths[rows[i]], str(splits[rows[i]]), classes[labels[i]], classes[predicted[i]],
            float(own[i]), float(other[i]), float(margin[i]), bool(other[i] >= usual[predicted[i]]),
        )
        for i in order
    )  # fmt: skip
