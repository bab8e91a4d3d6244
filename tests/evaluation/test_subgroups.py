"""Subgroups: every value of every attribute is named, with its figures or the reason for missing ones."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hoarfrost.evaluation import (
    Subgroup,
    banded,
    bootstrap_auc_ci,
    delong_ci,
    newcombe_ci,
    roc_auc,
    score_subgroups,
    wilson,
)
from hoarfrost.evaluation.subgroups import in_order
from tests.support.samples import calibrated, drawn_probabilities, two_columns


def scanners(n: int) -> list[str]:
    return ["A" if i % 3 else "B" for i in range(n)]


def test_subgroup_has_the_figures_of_its_samples_alone() -> None:
    y_true, p = calibrated(120, seed=0)
    found = score_subgroups(y_true, two_columns(p), {"scanner": scanners(120)}, threshold=0.4)
    assert [(one.attribute, one.value) for one in found] == [("scanner", "A"), ("scanner", "B")]
    for one in found:
        rows = np.array(scanners(120)) == one.value
        y, own = y_true[rows], p[rows]
        assert (one.n, one.counts) == (rows.sum(), ((y == 0).sum(), (y == 1).sum()))
        assert one.roc_auc.value == pytest.approx(roc_auc(y, own))
        is_few = min(one.counts) < 30
        plain = (newcombe_ci if is_few else delong_ci)(y, own)
        assert (one.roc_auc.low, one.roc_auc.high) == pytest.approx(plain, abs=0.05 if is_few else 1e-12)
        assert one.sensitivity == wilson(int((own[y == 1] >= 0.4).sum()), int((y == 1).sum()))
        assert one.specificity == wilson(int((own[y == 0] < 0.4).sum()), int((y == 0).sum()))
        assert (one.roc_auc.method, one.reason) == ("Newcombe" if is_few else "DeLong", "")


def test_subgroup_of_patients_with_several_images_has_the_bootstraps_interval() -> None:
    y_true, p = calibrated(40, seed=1)
    y_true, p, patients = np.repeat(y_true, 3), np.repeat(p, 3), np.repeat(np.arange(40), 3)
    one = score_subgroups(y_true, two_columns(p), {"site": ["x"] * 120}, groups=patients)[0]
    expected = bootstrap_auc_ci(y_true, two_columns(p), patients)
    assert (one.roc_auc.low, one.roc_auc.high, one.roc_auc.method) == (
        expected.low,
        expected.high,
        "bootstrap over patients",
    )


def test_subgroup_whose_positives_are_of_one_patient_says_why_it_has_no_interval() -> None:
    y_true = np.array([1, 1] + [0] * 28)
    patients = np.array([0, 0, *range(1, 29)])
    p = np.linspace(0.9, 0.1, 30)
    for p[5] in (0.6, 0.95):
        one = score_subgroups(y_true, two_columns(p), {"site": ["x"] * 30}, groups=patients)[0]
        assert one.roc_auc.interval is None
        assert one.roc_auc.why_none == "too few patients for an interval: 1"


def test_subgroups_that_are_too_small_are_named_with_their_counts_and_the_reason() -> None:
    y_true = np.array([0, 1] * 20 + [0] * 24 + [1] + [0, 1] * 3)
    values = ["large"] * 40 + ["one positive"] * 25 + ["small"] * 6
    found = {one.value: one for one in score_subgroups(y_true, two_columns(np.linspace(0, 1, 71)), {"site": values})}
    assert found["one positive"].reason == "fewer than two samples of a class"
    assert found["one positive"].counts == (24, 1)
    assert found["small"].reason == "fewer than 20 samples"
    assert (found["small"].roc_auc.value, found["small"].sensitivity) == (None, None)
    assert found["large"].reason == ""


def test_twenty_samples_are_enough_and_nineteen_are_not() -> None:
    y_true, p = calibrated(39, seed=4)
    y_true[[0, 1, 20, 21]] = 1
    y_true[[2, 3, 22, 23]] = 0
    twenty, nineteen = score_subgroups(y_true, two_columns(p), {"site": ["a"] * 20 + ["b"] * 19})
    assert twenty.roc_auc.value == pytest.approx(roc_auc(y_true[:20], p[:20]))
    assert (nineteen.attribute, nineteen.value, nineteen.reason) == ("site", "b", "fewer than 20 samples")
    assert (nineteen.roc_auc.value, nineteen.roc_auc.method) == (None, "")


def test_level_and_seed_reach_every_interval() -> None:
    y_true, p = calibrated(80, seed=5)
    columns = two_columns(p)

    def only(**options: Any) -> Subgroup:
        (one,) = score_subgroups(y_true, columns, {"site": ["x"] * 80}, threshold=0.5, **options)
        return one

    assert only(level=0.8).roc_auc.interval == pytest.approx(delong_ci(y_true, p, level=0.8))
    assert only(level=0.8).sensitivity == wilson(int((p[y_true == 1] >= 0.5).sum()), int(y_true.sum()), level=0.8)
    assert only(level=0.8).specificity == wilson(int((p[y_true == 0] < 0.5).sum()), int((1 - y_true).sum()), level=0.8)
    patients = np.arange(80) // 2
    expected = bootstrap_auc_ci(y_true, columns, patients, level=0.8, seed=7)
    drawn = only(groups=patients, level=0.8, seed=7)
    assert drawn.roc_auc.interval == (expected.low, expected.high)


def test_sample_at_the_threshold_is_called_positive() -> None:
    y_true, p = np.array([0, 1] * 10), np.array([0.25, 0.5] * 10)
    (one,) = score_subgroups(y_true, two_columns(p), {"site": ["x"] * 20}, threshold=0.5)
    assert one.sensitivity == wilson(10, 10)
    assert one.specificity == wilson(10, 10)


def test_labels_are_counted_where_they_are_known_and_there() -> None:
    y_true = np.array([[1, 0], [0, 1], [-1, 1]] * 10)
    p = np.random.default_rng(0).random((30, 2))
    (one,) = score_subgroups(y_true, p, {"site": ["x"] * 30})
    assert one.counts == (10, 20)


def test_subgroup_that_lacks_a_class_counts_none_of_it() -> None:
    y_true, probabilities = np.array([0, 1] * 15), drawn_probabilities(30, 3, seed=1)[1]
    (one,) = score_subgroups(y_true, probabilities, {"site": ["x"] * 30})
    assert (one.attribute, one.value) == ("site", "x")
    assert (one.counts, one.reason) == ((15, 15, 0), "fewer than two samples of a class")


def test_three_classes_have_a_macro_area_and_no_operating_point() -> None:
    y_true, probabilities = drawn_probabilities(90, 3, seed=0)
    one = score_subgroups(y_true, probabilities, {"site": ["x"] * 90}, threshold=0.5)[0]
    assert one.roc_auc.value is not None
    assert one.roc_auc.interval is not None
    assert one.roc_auc.interval[0] < one.roc_auc.value < one.roc_auc.interval[1]
    assert (one.sensitivity, one.specificity) == (None, None)


def test_of_very_many_values_the_most_frequent_are_scored_and_the_rest_counted() -> None:
    values = [f"v{i}" for i in range(30)] * 2 + ["often"] * 40
    y_true, p = calibrated(100, seed=2)
    found = score_subgroups(y_true, two_columns(p), {"id": values})
    assert len(found) == 21
    assert found[-1].value == "(11 further values)"
    assert sum(one.n for one in found) == 100
    assert next(one for one in found if one.value == "often").roc_auc.value is not None


def test_twenty_small_values_are_named_one_by_one_and_twenty_one_together() -> None:
    y_true, p = calibrated(42, seed=6)
    found = score_subgroups(y_true[:40], two_columns(p[:40]), {"id": [f"v{i // 2}" for i in range(40)]})
    assert len(found) == 20
    (one,) = score_subgroups(y_true, two_columns(p), {"id": [f"v{i // 2}" for i in range(42)]})
    assert (one.value, one.reason, one.n) == ("(21 values)", "none of them has 20 samples", 42)
    assert one.counts == (int((y_true == 0).sum()), int((y_true == 1).sum()))


def test_columns_of_many_values_are_named_and_do_not_hide_those_after_them() -> None:
    y_true, p = calibrated(120, seed=8)
    often = [f"v{i % 20}" for i in range(80)] + [f"a{i // 4}" for i in range(20)] + ["z"] * 20
    columns = {"id": [f"i{i // 2}" for i in range(120)], "many": often, "site": ["x"] * 120}
    found = score_subgroups(y_true, two_columns(p), columns)
    (identifier,) = (one for one in found if one.attribute == "id")
    assert identifier.value == "(60 values)"
    many = [one for one in found if one.attribute == "many"]
    assert (len(many), many[-1].value, many[-1].n) == (21, "(6 further values)", 24)
    assert many[-1].reason == "only the 20 most frequent values are scored"
    assert {one.value for one in many[:-1]} > {"z"}
    assert [one.value for one in found if one.attribute == "site"] == ["x"]


def test_of_many_values_one_that_has_twenty_samples_is_enough_to_score() -> None:
    y_true, p = calibrated(45, seed=7)
    found = score_subgroups(y_true, two_columns(p), {"id": ["often"] * 20 + [f"v{i}" for i in range(25)]})
    assert next(one for one in found if one.value == "often").n == 20


# -- bands --------------------------------------------------------------------------------------------------------------


def test_ages_are_banded_by_quartiles_that_are_named() -> None:
    assert banded([str(age) for age in range(21, 61)]) == (
        ["21 to 30"] * 10 + ["31 to 40"] * 10 + ["41 to 50"] * 10 + ["51 to 60"] * 10
    )


@given(st.lists(st.integers(0, 90).map(str) | st.sampled_from(["", "NaN"]), max_size=60))
def test_every_number_is_in_the_band_that_names_it(ages: list[str]) -> None:
    for age, band in zip(ages, banded(ages), strict=True):
        if age in {"", "NaN"}:
            assert band == "(missing)"
        elif " to " in band:
            low, high = map(float, band.split(" to "))
            assert low <= float(age) <= high
        else:
            assert band == age


def test_bands_of_long_numbers_have_names_of_their_own() -> None:
    dates = [str(20240101 + i) for i in range(28)]
    assert sorted(set(banded(dates))) == [
        "20240101 to 20240107", "20240108 to 20240114", "20240115 to 20240121", "20240122 to 20240128",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [
        ["1", "2", "3"] * 10,
        ["A", "B"],
        [f"p{i}" for i in range(30)],
        [],
        [str(i) for i in range(10)],
        [*map(str, range(20)), "inf"],
    ],
)
def test_few_numbers_and_texts_stay_as_they_are(values: list[str]) -> None:
    assert banded(values) == values


def test_bands_stand_in_the_order_of_their_numbers_and_the_missing_last() -> None:
    ages = [str(age) for age in (*range(5, 105), *[""] * 20)]
    found = score_subgroups(*_sample(120), {"age": ages})
    assert [one.value for one in found] == ["5 to 29", "30 to 54", "55 to 79", "80 to 104", "(missing)"]


def test_numbers_stand_before_texts() -> None:
    values = ["b", "10", "a", "9"] * 5
    found = score_subgroups(*_sample(20), {"grade": values})
    assert [one.value for one in found] == ["9", "10", "a", "b"]


def _sample(n: int) -> "tuple[np.ndarray, np.ndarray]":
    y_true, p = calibrated(n, seed=3)
    return y_true, two_columns(p)


def test_column_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="30 samples, but 2 values of 'site'"):
        score_subgroups(*_sample(30), {"site": ["a", "b"]})


def test_bands_have_as_many_digits_as_tell_their_ends_apart() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.normal(27, 4, 400) + 1e-10
    names = in_order(banded([repr(float(x)) for x in drawn]))
    assert len(names) == 4
    ends = [end for name in names for end in name.split(" to ")]
    assert ends == sorted(ends, key=float)
    assert len(set(ends)) == 8
    assert max(map(len, ends)) <= 7
    close = 1 + 1e-9 * np.arange(40.0)
    assert len(set(banded([repr(float(x)) for x in close]))) == 4
    assert in_order(banded([str(20240101 + i) for i in range(40)]))[0].startswith("20240101 to ")
    assert in_order(banded([str(x) for x in np.arange(40) / 8]))[0] == "0 to 1.125"
    assert len(set(banded([repr(x) for x in (-1.5e308, 1.5e308, *np.arange(0.3, 20).tolist())]))) == 4


def test_without_positives_the_specificity_and_the_patients_are_known() -> None:
    y_true, p = calibrated(200, seed=4)
    rows = np.arange(200) % 2 == 0
    y_true[rows] = 0
    groups = np.arange(200) // 4
    first, second = score_subgroups(
        y_true, two_columns(p), {"site": ["east" if row else "west" for row in rows]}, threshold=0.5, groups=groups
    )
    assert (first.value, first.roc_auc.value, first.sensitivity) == ("east", None, None)
    assert first.reason == "fewer than two samples of a class"
    assert first.roc_auc.n_patients == second.roc_auc.n_patients == 50
    assert first.specificity is not None
    assert first.specificity.value == pytest.approx(np.mean(p[rows] < 0.5))
    assert first.specificity.n_patients == 50
