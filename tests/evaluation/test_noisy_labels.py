"""Suspect labels: those that the out-of-fold probability contradicts, the worst first."""

import numpy as np
import pytest

from hoarfrost.evaluation.noisy_labels import SuspectLabel, suspect_labels
from tests.support.samples import Floats, Ints, drawn_probabilities


def suspects(y: Ints, probabilities: Floats, **options: int) -> tuple[SuspectLabel, ...]:
    """List suspect labels by the images' places, and the classes' numbers."""
    names = [str(i) for i in range(max(len(y), probabilities.shape[1]))]
    return suspect_labels(y, probabilities, names, names, ["train"] * len(names), **options)


def test_flipped_labels_come_first() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    p = np.clip(0.15 + 0.7 * y + rng.normal(0, 0.05, 200), 0.01, 0.99)
    flipped = y.copy()
    flipped[[3, 50, 120]] ^= 1
    found = suspects(flipped, np.column_stack([1 - p, p]))
    assert {int(one.path) for one in found} == {3, 50, 120}


def test_only_contradictions_are_listed_by_their_margin() -> None:
    y, probabilities = drawn_probabilities(300, 3, seed=0)
    found = suspects(y, probabilities, most=1000)
    assert sorted(int(one.path) for one in found) == np.flatnonzero(probabilities.argmax(axis=1) != y).tolist()
    margins = [one.margin for one in found]
    assert margins == sorted(margins, reverse=True)
    for one in found:
        place, label = int(one.path), int(one.label)
        assert label == y[place]
        assert one.p_label == probabilities[place, label]
        assert one.p_predicted == probabilities[place].max() == probabilities[place, int(one.predicted)]
        assert one.margin == pytest.approx(one.p_predicted - one.p_label)
    assert found[:5] == suspects(y, probabilities, most=5)


def test_confident_ones_are_surer_of_the_other_class_than_is_usual_there() -> None:
    y = np.array([0, 0, 0, 1, 1, 1])
    p = np.array([0.1, 0.6, 0.9, 0.7, 0.8, 0.9])  # of class 1; usual there: 0.8
    found = suspects(y, np.column_stack([1 - p, p]))
    assert [(int(one.path), one.confident) for one in found] == [(2, True), (1, False)]


def test_images_of_no_fold_are_left_out() -> None:
    y = np.array([0, 0, 1])
    probabilities = np.array([[np.nan, np.nan], [0.1, 0.9], [0.2, 0.8]])
    assert [int(one.path) for one in suspects(y, probabilities)] == [1]
    assert suspects(y, np.full((3, 2), np.nan)) == ()


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 labels, but probabilities of shape \(3, 2\)"):
        suspects(np.array([0, 1]), np.full((3, 2), 0.5))
    with pytest.raises(ValueError, match="y holds values other than 0 to 1"):
        suspects(np.array([0, 1, 2]), np.full((3, 2), 0.5))
