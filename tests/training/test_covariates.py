"""Covariates become features by what the fitted rows show, and by nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from hoarfrost.training.covariates import Covariate, clinical_and_both, encoded

FITTED = np.arange(60)


def number(values: list[float]) -> Covariate:
    column = np.array(values)
    return Covariate("age", np.where(np.isnan(column), "(missing)", column.astype(str)), np.isnan(column), column)


def category(texts: list[str]) -> Covariate:
    column = np.array(texts)
    return Covariate("site", column, column == "(missing)", None)


def drawn(n: int = 100) -> tuple[tuple[Covariate, ...], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = (rng.random(n) < 0.4).astype(np.int64)
    age = np.where(rng.random(n) < 0.2, np.nan, rng.normal(60, 10, n) + 10 * y)
    site = rng.choice(["a", "b", "(missing)"], n)
    p = 1 / (1 + np.exp(-rng.normal(size=n) - y))
    return (number(age.tolist()), category(site.tolist())), np.column_stack([1 - p, p]), y


def test_numbers_are_imputed_by_the_median_of_the_fitted_rows_and_categories_have_a_column_each() -> None:
    columns = number([1.0, np.nan, 3.0, 5.0, 100.0]), category(["a", "b", "(missing)", "a", "c"])
    found = encoded(columns, np.arange(4))
    np.testing.assert_array_equal(found[:, 0], [1, 3, 3, 5, 100])
    np.testing.assert_array_equal(found[:, 1], [0, 1, 0, 0, 0])  # whether it is missing
    np.testing.assert_array_equal(found[:, 2:], [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]])


def test_nothing_missing_among_the_fitted_rows_needs_no_column() -> None:
    found = encoded([number([1.0, 2.0, np.nan])], np.arange(2))
    np.testing.assert_array_equal(found, [[1.0], [2.0], [1.5]])


@pytest.mark.parametrize("place", [0, 1])
def test_covariates_of_held_out_rows_change_no_other_prediction(place: int) -> None:
    columns, images, y = drawn()
    before = clinical_and_both(columns, images, y, FITTED)
    changed = list(columns)
    texts, missing = columns[place].texts.copy(), columns[place].is_missing.copy()
    texts[80:], missing[80:] = "z", False
    numbers = columns[place].numbers
    if numbers is not None:
        numbers = np.where(np.arange(100) >= 80, 1e6, numbers)
    changed[place] = replace(columns[place], texts=texts, is_missing=missing, numbers=numbers)
    after = clinical_and_both(changed, images, y, FITTED)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one[:80], other[:80])
        assert not np.array_equal(one[80:], other[80:])


def test_labels_and_images_of_held_out_rows_change_no_other_prediction() -> None:
    columns, images, y = drawn()
    before = clinical_and_both(columns, images, y, FITTED)
    other_images = images.copy()
    other_images[80:] = images[80:, ::-1]
    after = clinical_and_both(columns, other_images, np.where(np.arange(100) >= 60, 1 - y, y), FITTED)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1][:80], after[1][:80])


def test_both_is_logistic_regression_on_the_covariates_and_the_logit_of_the_images() -> None:
    columns, images, y = drawn()
    features = np.column_stack([encoded(columns, FITTED), np.log(images[:, 1] / images[:, 0])])
    z = (features - features[FITTED].mean(axis=0)) / features[FITTED].std(axis=0)
    expected = LogisticRegression(max_iter=2000).fit(z[FITTED], y[FITTED]).predict_proba(z)
    np.testing.assert_allclose(clinical_and_both(columns, images, y, FITTED)[1], expected, atol=1e-9)


def test_three_classes_and_several_labels_get_probabilities_too() -> None:
    columns, images, y = drawn()
    three = np.column_stack([images / 2, np.full(len(y), 0.5)])
    classes = np.where(np.arange(100) % 3 == 0, 2, y)
    for found in clinical_and_both(columns, three, classes, FITTED):
        np.testing.assert_allclose(found.sum(axis=1), 1)
    labels = np.column_stack([y, np.where(np.arange(100) % 7 == 0, -1, 1 - y)])
    for found in clinical_and_both(columns, images[:, ::-1], labels, FITTED):
        assert found.shape == (100, 2)
        assert ((found > 0) & (found < 1)).all()
