"""ROC AUCs of many heads on the device that their scores are on: nothing is copied to the host."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hoarfrost.training.objective import UNKNOWN


@dataclass(frozen=True)
class Areas:
    """The macro ROC AUC on the validation rows of one fold, to the last digit that of `evaluation.macro_roc_aucs`.

    `sides` has, for each class or label that is scored, its number, and the rows without and with it, on the device.
    """

    sides: tuple[tuple[int, Tensor, Tensor], ...]

    @classmethod
    def of(cls, y_true: Tensor, n_classes: int) -> "Areas":
        """Return what scores heads on labels (n,) or (n, C) int64; raise ValueError if a class has no row."""
        labels = y_true.cpu()
        sides = []
        for number in [1] if labels.ndim == 1 and n_classes == 2 else range(n_classes):
            has = labels == number if labels.ndim == 1 else labels[:, number] == 1
            is_known = torch.ones_like(has) if labels.ndim == 1 else labels[:, number] != UNKNOWN
            without, with_it = (torch.nonzero(some)[:, 0].to(y_true.device) for some in (is_known & ~has, has))
            if not len(without) or not len(with_it):
                raise ValueError(f"the ROC AUC of class {number} needs rows with and without it")
            sides.append((number, without, with_it))
        return cls(tuple(sides))

    def __call__(self, probabilities: Tensor) -> Tensor:
        """Return the areas (V,) float64 of probabilities (V, n, C) float64; NaN counts as zero."""
        scores = probabilities.nan_to_num()
        areas = [self._area(scores[..., number], *sides) for number, *sides in self.sides]
        return sum(areas[1:], areas[0]) / len(areas)  # one after the other, as NumPy's mean adds them

    @staticmethod
    def _area(scores: Tensor, without: Tensor, with_it: Tensor) -> Tensor:
        """Return the share of pairs of rows in which the one with the class has the higher score; ties count one half."""
        negatives, positives = scores[:, without].sort(dim=1).values, scores[:, with_it].contiguous()
        below = torch.searchsorted(negatives, positives)
        below_or_equal = torch.searchsorted(negatives, positives, right=True)
        return (below + below_or_equal).sum(1).double() / 2 / (len(without) * len(with_it))
