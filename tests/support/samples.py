"""Samples that tests of statistics share: binary ones with ties, probabilities of heads, patients with several images."""

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from hoarfrost.evaluation import score
from hoarfrost.runs import to_json

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Sample = tuple[Ints, Floats]


@st.composite
def samples(draw: st.DrawFn, fewest: int = 1) -> Sample:
    """Draw a binary sample with at least so many of each class, and many ties."""
    classes = [*draw(st.lists(st.integers(0, 1), max_size=25)), *[0, 1] * fewest]
    scores = draw(st.lists(st.integers(0, 8), min_size=len(classes), max_size=len(classes)))
    return np.array(classes), np.array(scores) / 8


def pair_values(y_true: Ints, y_score: Floats) -> Floats:
    """Compare each positive with each negative: 1 if it is above, 0.5 if tied; (positives, negatives)."""
    differences = y_score[y_true == 1][:, None] - y_score[y_true == 0][None, :]
    return np.asarray((np.sign(differences) + 1) / 2)


def drawn_probabilities(n: int, n_classes: int, seed: int) -> tuple[Ints, Floats]:
    """Draw classes and the probabilities of a head that is often right."""
    rng = np.random.default_rng(seed)
    y_true = rng.choice(n_classes, n, p=np.arange(1, n_classes + 1) / np.arange(1, n_classes + 1).sum())
    odds = np.exp(rng.normal(size=(n, n_classes)) + 1.2 * np.eye(n_classes)[y_true])
    return y_true, odds / odds.sum(axis=1, keepdims=True)


def two_columns(p: Floats) -> Floats:
    """Return the probabilities (n, 2) of two classes from those of class 1."""
    return np.column_stack([1 - p, p])


def calibrated(n: int, seed: int, *, slope: float = 1.0, intercept: float = 0.0) -> tuple[Ints, Floats]:
    """Draw classes and probabilities of class 1 whose logit has this slope and intercept to the true logit."""
    rng = np.random.default_rng(seed)
    stated = rng.normal(0, 1.5, n)
    y_true = (rng.random(n) < 1 / (1 + np.exp(-(intercept + slope * stated)))).astype(np.int64)
    return y_true, 1 / (1 + np.exp(-stated))


def scored(*args: Any) -> dict[str, Any]:
    """Score as `hoarfrost.evaluation.score` does, and return what `metrics.json` has of it."""
    found: dict[str, Any] = to_json(score(*args))
    return found
