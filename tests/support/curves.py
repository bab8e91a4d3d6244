"""Learning curves that follow a known law."""

import numpy as np

SHARES = (0.05, 0.1, 0.2, 0.5, 1.0)
LAWS = ((0.95, 0.3, 0.5), (0.85, 0.5, 0.9), (0.95, 0.25, 0.2), (0.99, 0.45, 0.5))
"""a, b and c of a - b (n / 10)^-c: the ROC AUC of heads trained on n images."""
N_DRAWS = 5


def law(parameters: tuple[float, float, float], n: float) -> float:
    a, b, c = parameters
    return a - b * (n / 10) ** -c


def drawn_curve(
    rng: np.random.Generator, parameters: tuple[float, float, float], n: int, *, deviation: float, n_last: int = 1
) -> tuple[list[int], list[list[float]]]:
    """Return the sizes of a curve up to n images, and the areas of five draws at each, but for `n_last` of all images.

    The draws' standard deviation is `deviation` divided by the root of the number of images.
    """
    sizes = [round(share * n) for share in SHARES]
    areas = []
    for size in sizes:
        n_draws = n_last if size == n else N_DRAWS
        noise = deviation / np.sqrt(size) * rng.normal(size=n_draws)
        areas.append(np.clip(law(parameters, size) + noise, 0, 1).tolist())
    return sizes, areas
