"""Weights in 8-bit integers: each rounded up or down so that what a convolution sums up stays near its sum in float32."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

LEVELS = 255  # symmetric about zero


def rounded(weight: "npt.NDArray[np.float32]") -> "npt.NDArray[np.float32]":
    """Return a convolution's weights (K, C, H, W) as multiples of a 127th of the largest of each output channel.

    Neighbouring pixels of a feature map are much alike, so the error of a kernel's sum counts more than that of each
    weight. Each weight is rounded to the nearest multiple; then those nearest to the middle between two are rounded the
    other way until the error of their kernel's sum is at most half a step.

    References
    ----------
    Guo et al. (2022), SQuant: On-the-Fly Data-Free Quantization via Diagonal Hessian Approximation, ICLR.
    """
    largest = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
    step = largest.astype(np.float64) / (LEVELS // 2)
    exact = (weight / np.where(step > 0, step, 1)).reshape(*weight.shape[:2], -1)  # (K, C, H * W) float64
    nearest = np.rint(exact)
    error = nearest - exact
    of_sum = error.sum(-1, keepdims=True)
    excess = error * np.sign(of_sum)  # above zero where rounding the other way makes the sum's error smaller
    rank = np.argsort(np.argsort(-excess, axis=-1, kind="stable"), axis=-1, kind="stable")
    turned = (rank < np.rint(np.abs(of_sum))) & (excess > 0)
    whole = np.clip(nearest - np.sign(of_sum) * turned, -(LEVELS // 2), LEVELS // 2)
    values: npt.NDArray[np.float32] = (whole.reshape(weight.shape) * step).astype(np.float32)
    return values
