"""What metrics count: images, or patients."""

import numpy as np
import pytest

from hoarfrost.evaluation.units import patient_numbers, units_of

Y = np.array([0, 1, 0, 1, 1])
PATIENTS = patient_numbers(["b", "a", "b", "a", ""])
P = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8], [0.5, 0.5]])


def test_patients_are_numbered_and_unknown_ones_stand_alone() -> None:
    assert patient_numbers(["b", "", "a", "b", ""]).tolist() == [0, 1, 2, 0, 3]


def test_images_count_by_default_with_their_patients_as_groups() -> None:
    units = units_of(Y, 2, PATIENTS)
    assert units.y is Y
    assert units.groups is PATIENTS
    assert units.joined(P) is P
    assert units.values(["x"] * 5) == ["x"] * 5


@pytest.mark.parametrize(("how", "expected"), [("mean", [0.2, 0.7, 0.5]), ("max", [0.3, 0.8, 0.5])])
def test_patients_have_the_mean_or_maximum_of_their_images(how: str, expected: list[float]) -> None:
    units = units_of(Y, 2, PATIENTS, how)
    assert units.y.tolist() == [0, 1, 1]
    assert units.groups is None
    assert units.joined(P)[:, 1] == pytest.approx(expected)


def test_attribute_of_a_patient_whose_images_differ_is_several() -> None:
    assert units_of(Y, 2, PATIENTS, "mean").values(["A", "B", "A", "C", "A"]) == ["A", "(several)", "A"]


def test_patient_of_several_of_three_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"images of different classes \(1; first"):
        units_of(np.array([0, 1, 2]), 3, patient_numbers(["a", "a", "b"]), "mean")
