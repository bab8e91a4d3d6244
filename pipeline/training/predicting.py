"""The predictions of trained heads."""

import copy
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import Tensor, nn

from hoarfrost.training.rows import HeldRows, Rows


@torch.no_grad()
def predict_probabilities(
    module: nn.Module, x: Tensor | Rows, rows: npt.NDArray[np.int64] | None = None, *, multilabel: bool = False
) -> npt.NDArray[np.float64]:
    """Return a head's probabilities.

    Parameters
    ----------
    module : nn.Module
        A trained head.
    x : Tensor (n, D) or Rows
    rows : ndarray (m,) int64, optional
        Rows to predict; all by default.
    multilabel : bool
        Whether an image may have several labels.

    Returns
    -------
    ndarray (m, C) float64
        Class probabilities, which sum to one; with `multilabel` those of having each label.

    Notes
    -----
    Logits are computed in float64 and rounded to float32: in float32 a sum's last digit would depend on the number of
    rows that are predicted together, and on the machine.
    """
    exact = copy.deepcopy(module).eval().double()
    held = HeldRows(x) if isinstance(x, Tensor) else x
    wanted = np.arange(len(held)) if rows is None else rows
    logits: Tensor | None = None
    for places, part in held.blocks(wanted):
        found = exact(part.double()).float().cpu()
        logits = found.new_empty((len(wanted), found.shape[1])) if logits is None else logits
        logits[torch.from_numpy(places)] = found
    if logits is None:
        raise ValueError("there are no rows to predict")
    if multilabel:  # not torch's sigmoid, whose last digits differ at the end of an array
        return np.asarray(expit(logits.double().numpy()))
    return logits.double().softmax(1).numpy()


def mean_probabilities(of_seeds: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Return the mean of several trainings' probabilities, always added in the same order."""
    return np.asarray(sum(of_seeds[1:], of_seeds[0]) / len(of_seeds))
