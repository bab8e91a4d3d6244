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
    rng: np.random.Generator, parameters: tuple[float, float, float], n: int, *, deviation: float
) -> tuple[list[int], list[list[float]]]:
    """Return the sizes of a curve up to n images, and the areas of five draws at each, but for one of all images.

    The standard deviation over training sets is `deviation` divided by the root of their size. Draws are from the same n
    images, so they share what these have in common.
    """
    sizes, areas = [round(share * n) for share in SHARES], []
    of_all = deviation / np.sqrt(n) * rng.normal()
    for size in sizes:
        own = deviation * np.sqrt((1 - size / n) / size) * rng.normal(size=N_DRAWS if size < n else 1)
        areas.append(np.clip(law(parameters, size) + of_all + own, 0, 1).tolist())
    return sizes, areas
