"""The probabilities of one trained module."""

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from hoarfrost.heads.committee import Committee


def predict_probabilities(module: nn.Module, x: Tensor, *, multilabel: bool = False) -> npt.NDArray[np.float64]:
    return Committee([module], [1.0], is_multilabel=multilabel).exact().probabilities(x)
