"""The shortcut audit: a planted shortcut gets a warning; an even scanner, or one that embeddings do not show, does not."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import chi2_contingency

from hoarfrost.demo import write_demo
from hoarfrost.evaluation.shortcuts import audit_shortcuts, cramers_v
from hoarfrost.experiment.splits import merged_groups
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions

Ints = npt.NDArray[np.int64]
Embeddings = npt.NDArray[np.float32]


def drawn(n: int, tied: float, visible: float, seed: int = 0) -> tuple[Embeddings, Ints, Ints, list[str]]:
    """Draw patients of one image: in a share of them the scanner goes with the class, and the embedding shows it."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    scanner = np.where(rng.random(n) < tied, y, rng.integers(0, 2, n))
    x = rng.normal(size=(n, 40)).astype(np.float32)
    x[:, :5] += visible * scanner[:, None]
    return x, y, np.arange(n), ["AB"[s] for s in scanner]


def test_scanner_that_is_told_and_goes_with_the_class_is_a_warning_with_the_figures() -> None:
    x, y, groups, scanner = drawn(200, tied=0.6, visible=3)
    found = audit_shortcuts(x, y, groups, {"scanner": scanner})[0]
    assert found.is_shortcut
    assert found.roc_auc is not None
    assert found.association is not None
    assert f"'scanner' with a ROC AUC of {found.roc_auc:.2f}" in found.warning
    assert f"Cramer's V {found.association.cramers_v:.2f}" in found.warning


@pytest.mark.parametrize(("tied", "visible"), [(0, 3), (0.6, 0), (0, 0)])
def test_scanner_that_is_even_or_is_not_told_is_no_warning(tied: float, visible: float) -> None:
    x, y, groups, scanner = drawn(200, tied, visible)
    found = audit_shortcuts(x, y, groups, {"scanner": scanner})[0]
    assert found.roc_auc is not None
    assert not found.is_shortcut
    assert found.warning == ""


def test_attribute_that_embeddings_do_not_hold_is_told_at_one_half() -> None:
    aucs = []
    for seed in range(6):
        x, y, groups, scanner = drawn(150, tied=0, visible=0, seed=seed)
        aucs.append(audit_shortcuts(x, y, groups, {"scanner": scanner})[0].roc_auc)
    assert np.mean([auc for auc in aucs if auc is not None]) == pytest.approx(0.5, abs=0.05)


def test_patients_are_not_recognised_for_their_scanner() -> None:
    # Every patient's images are alike, and the scanner shows in nothing: images in both folds would give it away.
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 6)
    x = (rng.normal(size=(60, 200))[groups] + 0.05 * rng.normal(size=(360, 200))).astype(np.float32)
    scanner = ["AB"[s] for s in rng.integers(0, 2, 60)[groups]]
    found = audit_shortcuts(x, groups % 2, groups, {"scanner": scanner})[0]
    assert found.roc_auc is not None
    assert found.roc_auc < 0.75


def test_images_of_one_patient_are_one_piece_of_evidence_of_unevenness() -> None:
    x, y, groups, scanner = drawn(60, tied=0.3, visible=3, seed=1)
    once = audit_shortcuts(x, y, groups, {"scanner": scanner})[0].association
    again = np.repeat(np.arange(60), 5)
    copied = audit_shortcuts(x[again], y[again], groups[again], {"scanner": [scanner[i] for i in again]})[0].association
    assert copied == once


def test_several_values_are_told_by_the_macro_area_and_rare_ones_are_named() -> None:
    rng = np.random.default_rng(0)
    site = np.arange(153) % 3
    x = rng.normal(size=(153, 20)).astype(np.float32)
    x[:, :3] += 4 * np.eye(3)[site]
    names = ["north", "south", "west"]
    column = [names[s] for s in site[:150]] + ["rare"] * 3
    found = audit_shortcuts(x, np.arange(153) % 2, np.arange(153), {"site": column})[0]
    assert found.values == ("north", "south", "west")
    assert found.roc_auc is not None
    assert found.roc_auc > 0.95
    assert sum(found.counts["rare"]) == 3


def test_age_is_told_by_its_bands_and_what_is_missing_is_no_value() -> None:
    rng = np.random.default_rng(0)
    age = rng.permutation(np.repeat(np.arange(20, 80), 3))
    y = (age >= 50).astype(np.int64)
    x = rng.normal(size=(180, 20)).astype(np.float32)
    x[:, :4] += 6 * np.eye(4)[(age - 20) // 15]
    column = ["NaN" if i % 6 == 0 else str(a) for i, a in enumerate(age.tolist())]
    found = audit_shortcuts(x, y, np.arange(180), {"age": column})[0]
    assert len(found.values) == 4
    assert all(" to " in band for band in found.values)
    assert sum(found.counts["(missing)"]) == 30
    assert found.is_shortcut


@pytest.mark.parametrize(
    "column",
    [["A"] * 100, [""] * 100, ["A"] * 50 + ["NaN"] * 50, [f"id{i}" for i in range(100)], ["A"] * 95 + ["B"] * 5],
)
def test_attribute_that_cannot_be_audited_says_why(column: list[str]) -> None:
    x, y, groups, _ = drawn(100, 0, 0)
    found = audit_shortcuts(x, y, groups, {"attribute": column})[0]
    assert (found.roc_auc, found.association, found.is_shortcut) == (None, None, False)
    assert "of its values have 10 patients or more; 2 to 20 are needed" in found.reason


def test_column_of_another_length_is_refused() -> None:
    x, y, groups, _ = drawn(100, 0, 0)
    with pytest.raises(ValueError, match="100 embeddings, but 3 values of 'scanner'"):
        audit_shortcuts(x, y, groups, {"scanner": ["A", "B", "A"]})


# -- Cramer's V ---------------------------------------------------------------------------------------------------------


def test_association_of_equal_variables_is_one_and_of_independent_ones_near_zero() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, 600), rng.integers(0, 4, 600)
    assert cramers_v(a, a).cramers_v == pytest.approx(1)
    assert cramers_v(a, b).cramers_v < 0.08


def test_association_of_two_by_two_is_phi_with_the_bias_taken_off() -> None:
    first, second = [0] * 50 + [1] * 50, [0] * 35 + [1] * 15 + [0] * 15 + [1] * 35
    found = cramers_v(first, second)
    statistic, p, *_ = chi2_contingency([[35, 15], [15, 35]], correction=False)
    assert found.p == pytest.approx(p)
    assert found.cramers_v == pytest.approx(((statistic / 100 - 1 / 99) / (1 - 1 / 99)) ** 0.5)


def test_association_refuses_a_variable_of_one_value() -> None:
    with pytest.raises(ValueError, match="an association needs two values of each variable"):
        cramers_v([1, 1, 1], [0, 1, 0])


# -- the demo set -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_shortcut_planted_in_the_demo_set_is_warned_of_and_the_set_as_shipped_is_not(tmp_path: Path) -> None:
    write_demo(tmp_path / "images", n_images=300)
    extract(tmp_path / "images", tmp_path / "cache.h5", options=ExtractOptions(weights="random:0"))
    with EmbeddingCache(tmp_path / "cache.h5") as cache:
        table = cache.dataset()
        x, _ = cache.arrays(table)
    assert table.patients is not None
    y = np.array([int(label == "malignant") for label in table.labels])
    groups, scanner = merged_groups(table.patients), np.array(table.attributes["scanner"])
    shipped = audit_shortcuts(x, y, groups, {"scanner": scanner.tolist()})[0]
    assert shipped.roc_auc is not None
    assert shipped.roc_auc > 0.9  # embeddings predict it, but it is even
    assert not shipped.is_shortcut
    # Malignant patients of A and others of B are omitted, except one in five.
    tied = (y == 1) == (scanner == "B")
    kept = tied | (groups % 5 == 0)
    planted = audit_shortcuts(x[kept], y[kept], groups[kept], {"scanner": scanner[kept].tolist()})[0]
    assert planted.is_shortcut
    assert "possible shortcut" in planted.warning
