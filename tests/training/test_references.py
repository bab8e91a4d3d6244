"""Classifiers that heads are compared to: fitted on all training images, or on a part that has every class."""

import numpy as np
import pytest
import torch

from hoarfrost.training import HeldRows
from hoarfrost.training.references import MOST_TRAINED, fitted_rows, reference_probabilities


def with_rare(n: int, n_rare: int) -> np.ndarray:
    """Classes (n,) of which the third is rare, in a seeded order."""
    y = np.arange(n) % 2
    y[:n_rare] = 2
    return np.random.default_rng(0).permutation(y)


def test_all_training_rows_are_fitted_on_where_they_are_few() -> None:
    train = np.arange(3, MOST_TRAINED)
    assert fitted_rows(with_rare(MOST_TRAINED, 5), train).tolist() == train.tolist()


@pytest.mark.parametrize("n_rare", [2, 200])
def test_a_drawn_part_of_the_training_rows_has_its_size_and_some_of_every_class(n_rare: int) -> None:
    y, train = with_rare(60_000, n_rare), np.arange(0, 60_000, 1)
    rows = fitted_rows(y, train)
    assert len(rows) == len(np.unique(rows)) == MOST_TRAINED
    counts = np.bincount(y[rows])
    assert counts[2] == min(n_rare, 10) or counts[2] > 10
    assert counts[0] == pytest.approx(counts[1], rel=0.1)


def test_a_label_of_few_images_is_learnt_both_ways_from_a_drawn_part() -> None:
    y = np.zeros((20_000, 3), np.int64)
    y[:, 0] = np.arange(20_000) % 2
    y[[17, 11_111], 1] = 1
    y[:, 2] = 1
    y[[18, 11_112], 2] = 0
    x = HeldRows(torch.from_numpy(np.random.default_rng(0).standard_normal((20_000, 3), np.float32)))
    found = reference_probabilities(x, y, np.arange(20_000), np.arange(5))
    assert all(np.isfinite(probabilities).all() and probabilities.shape == (5, 3) for probabilities in found.values())
