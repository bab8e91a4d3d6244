"""How far embeddings of a lower precision are from those in float32, on a dataset's own images."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Drift:
    """Cosines between embeddings of two precisions, over some images: their mean, and the least.

    The centred ones are those of what is left without the mean embedding in float32, in which images differ.
    """

    images: int
    mean: float
    least: float
    centred_mean: float
    centred_least: float

    def __str__(self) -> str:
        """Return a phrase: "cosine to float32 on 32 images: mean 0.9995, least 0.9992; centred 0.997 and 0.993"."""
        return (
            f"cosine to float32 on {self.images} images: mean {self.mean:.4f}, least {self.least:.4f}; centred "
            f"{self.centred_mean:.3f} and {self.centred_least:.3f}"
        )


def drift_between(found: "Embeddings", in_float32: "Embeddings") -> Drift:
    """Return the drift of embeddings (n, D) float32 from the same images' in float32, (n, D)."""
    own, centred = (_cosines(found - at, in_float32 - at) for at in (0, in_float32.mean(axis=0)))
    return Drift(len(found), float(own.mean()), float(own.min()), float(centred.mean()), float(centred.min()))


def _cosines(a: "Embeddings", b: "Embeddings") -> "npt.NDArray[np.float64]":
    """Return the cosines (n,) between rows; 1 between two rows of zeros."""
    import numpy as np

    products, lengths = (a * b).sum(axis=1, dtype=np.float64), np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: npt.NDArray[np.float64] = np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1), 1.0)
    return cosines
