"""The leakage gate: planted patients, bytes and re-encoded images are caught; a clean set is clean."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hoarfrost.demo import write_demo
from hoarfrost.evaluation import near_duplicates
from hoarfrost.evaluation.leakage import Leakage, SharedPair, find_leakage
from hoarfrost.evaluation.near_duplicates import (
    NearPairs,
    connecting_pairs,
    near_groups,
    near_pairs,
    without_shared_axes,
)
from hoarfrost.experiment.splits import merged_groups, split
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions

Embeddings = npt.NDArray[np.float32]


def drawn(n: int, dim: int = 64, seed: int = 0) -> Embeddings:
    """Draw embeddings that are all alike but for some noise, as those of one modality are."""
    rng = np.random.default_rng(seed)
    return (10 + rng.normal(size=(n, 1)) * rng.normal(size=dim) + rng.normal(size=(n, dim))).astype(np.float32)


def halves(n: int) -> npt.NDArray[np.str_]:
    return np.array(["train", "test"] * n)[:n]


def looked_for(
    x: Embeddings,
    splits: npt.NDArray[np.str_],
    contents: Sequence[object],
    patients: Sequence[str] | None = None,
    **options: Any,
) -> Leakage:
    """Look for leakage among images that are named by their places."""
    return find_leakage(x, splits, contents, [str(i) for i in range(len(x))], patients, **options)


def is_clean(found: Leakage) -> bool:
    return not (found.refused or found.n_near_duplicates)


# -- planted leaks ------------------------------------------------------------------------------------------------------


def test_patient_in_two_splits_is_found_and_refused() -> None:
    patients = [f"p{i // 2}" for i in range(40)]
    splits = np.array(["train"] * 20 + ["val"] * 7 + ["test"] * 13)
    report = looked_for(drawn(40), splits, range(40), patients)
    assert (report.n_patients, report.n_contents, report.refused) == (1, 0, True)
    assert report.patients[0] == SharedPair("the patient 'p13'", "26", "val", "27", "test", 2)


def test_same_bytes_in_two_splits_are_found_and_refused_and_no_near_duplicates_as_well() -> None:
    x, contents = drawn(40), list(range(40))
    x[31], contents[31] = x[4], contents[4]
    report = looked_for(x, halves(40), contents)
    assert (report.n_patients, report.n_contents, report.refused) == (0, 1, True)
    assert (report.contents[0].first, report.contents[0].second) == ("4", "31")
    assert report.n_near_duplicates == 0


def test_same_bytes_and_patients_within_a_split_are_no_leak() -> None:
    x = np.repeat(drawn(20), 2, axis=0)
    splits = np.repeat(["train", "test"], 20)
    assert is_clean(looked_for(x, splits, np.arange(40) // 2, [f"p{i // 2}" for i in range(40)]))


def test_unknown_patients_are_not_taken_for_one() -> None:
    assert looked_for(drawn(40), halves(40), range(40), [""] * 40).n_patients == 0


def test_nearly_same_embedding_in_two_splits_is_a_warning() -> None:
    x = drawn(60)
    x[31] = x[4] + np.random.default_rng(1).normal(0, 0.1, 64)
    report = looked_for(x, halves(60), range(60))
    assert (report.refused, report.n_near_duplicates) == (False, 1)
    assert (report.near_duplicates[0].first, report.near_duplicates[0].second) == ("4", "31")
    assert 0.9 < report.near_duplicates[0].cosine < 1


# -- against the obvious ------------------------------------------------------------------------------------------------


def slow_pairs(x: Embeddings, splits: npt.NDArray[np.str_], threshold: float) -> list[tuple[int, int]]:
    z = without_shared_axes(x).astype(np.float64)
    return [
        (i, j) for i in range(len(x)) for j in range(i + 1, len(x))
        if splits[i] != splits[j] and float(z[i] @ z[j]) > threshold
    ]  # fmt: skip


@pytest.mark.parametrize("dim", [150, 180])  # of 40 embeddings, a fourth and more
def test_shared_axes_are_the_principal_ones(dim: int) -> None:
    x = drawn(40, dim)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    axes = np.linalg.eigh(z.T @ z)[1][:, -2:]
    rest = z - z @ axes @ axes.T
    expected = rest / np.linalg.norm(rest, axis=1, keepdims=True)
    np.testing.assert_allclose(without_shared_axes(x), expected, atol=1e-4)


@given(st.integers(2, 50), st.integers(0, 100), st.floats(0.05, 0.95))
def test_blocks_find_what_a_loop_over_all_pairs_finds(n: int, seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    x = drawn(n, 6, seed)
    splits = rng.choice(["train", "val", "test"], n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_LEFT_ROWS", 4)
        patch.setattr(near_duplicates, "_RIGHT_ROWS", 7)
        patch.setattr(near_duplicates, "_MOST_KEPT", 50)
        report = looked_for(x, splits, range(n), threshold=threshold, most_listed=10_000)
        shorter = looked_for(x, splits, range(n), threshold=threshold, most_listed=3)
    expected = slow_pairs(x, splits, threshold)
    assert report.n_near_duplicates == shorter.n_near_duplicates == len(expected)
    cosines = [pair.cosine for pair in report.near_duplicates]
    assert cosines == sorted(cosines, reverse=True)
    assert shorter.near_duplicates == report.near_duplicates[:3]
    found = {(int(pair.first), int(pair.second)) for pair in report.near_duplicates}
    assert found == set(expected)


@given(st.integers(2, 50), st.integers(0, 100), st.floats(0.05, 0.95))
def test_pairs_among_all_images_are_those_of_a_loop_and_give_the_same_report(
    n: int, seed: int, threshold: float
) -> None:
    x, splits = drawn(n, 6, seed), np.random.default_rng(seed).choice(["train", "val", "test"], n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_LEFT_ROWS", 4)
        patch.setattr(near_duplicates, "_RIGHT_ROWS", 7)
        found = near_pairs(x, threshold=threshold)
    assert {tuple(pair) for pair in found.pairs.tolist()} == set(slow_pairs(x, np.arange(n).astype(str), threshold))
    searched = looked_for(x, splits, range(n), threshold=threshold)
    given = find_leakage(None, splits, range(n), [str(i) for i in range(n)], near=found, threshold=threshold)
    assert given.n_near_duplicates == searched.n_near_duplicates
    pairs = [[(one.first, one.second) for one in report.near_duplicates] for report in (given, searched)]
    assert sorted(pairs[0]) == sorted(pairs[1])


@given(st.integers(2, 40), st.integers(0, 100), st.floats(0.05, 0.95))
def test_with_too_many_pairs_those_that_remain_connect_the_same_images(n: int, seed: int, threshold: float) -> None:
    x = drawn(n, 6, seed)
    everything = near_pairs(x, threshold=threshold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_LEFT_ROWS", 4)
        patch.setattr(near_duplicates, "_MOST_KEPT", 3)
        fewer = near_pairs(x, threshold=threshold)
    assert fewer.is_complete == (len(everything.cosines) <= 3)
    for strict in (threshold, 0.5 + threshold / 2):  # at every higher threshold too
        kept = [one.pairs[one.cosines > strict] for one in (everything, fewer)]
        groups = [merged_groups(np.arange(n), components(pairs, n)) for pairs in kept]
        assert np.array_equal(*groups)


def components(pairs: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """Return equal numbers for connected images, by repeated relabelling."""
    number = np.arange(n)
    for _ in range(n):
        for first, second in pairs.tolist():
            number[[first, second]] = min(number[first], number[second])
    return number


def test_groups_are_connected_images_and_others_are_alone() -> None:
    pairs = np.array([[0, 3], [3, 7], [2, 5]])
    groups = near_groups(NearPairs(pairs, np.array([0.95, 0.8, 0.99], np.float32)), 9)
    assert len({groups[0], groups[3], groups[7]}) == 1
    assert groups[2] == groups[5]
    assert len(set(groups.tolist())) == 6


def test_a_chain_ends_at_the_bound_and_the_closest_stay_together() -> None:
    pairs = np.column_stack([np.arange(29), np.arange(1, 30)])  # a film: each image is like the next one
    cosines = np.full(29, 0.8, np.float32)
    cosines[[4, 14, 24]] = 0.99
    groups = near_groups(NearPairs(pairs, cosines), 100)
    assert np.bincount(groups).max() <= 10
    for first in (4, 14, 24):
        assert groups[first] == groups[first + 1]
    assert np.bincount(near_groups(NearPairs(pairs, cosines), 3_000)).max() == 30


def test_connecting_pairs_are_fewer_than_the_images_and_the_closest() -> None:
    pairs = np.array([[0, 1], [0, 2], [1, 2]])
    found = connecting_pairs(NearPairs(pairs, np.array([0.8, 0.9, 1.0], np.float32)), 3)
    assert {tuple(pair) for pair in found.pairs.tolist()} == {(0, 2), (1, 2)}
    assert sorted(found.cosines.tolist()) == pytest.approx([0.9, 1.0])


def test_constant_and_silent_columns_make_nothing_alike() -> None:
    x = drawn(80)
    x[:, :20] = 0
    x[:, 20] = 3.7
    x[:, 21] = 0
    x[[10, 31], 21] = 5.0  # a unit that two images alone excite
    assert is_clean(looked_for(x, halves(80), range(80)))


def test_few_images_are_not_called_alike() -> None:
    for n in (2, 3, 8, 19, 25):
        assert is_clean(looked_for(drawn(n, 512, seed=n), halves(n), range(n)))


@pytest.mark.parametrize(
    ("x", "splits", "contents", "patients", "message"),
    [
        (drawn(4), ["a"] * 3, range(4), None, "4 embeddings, but 3 splits"),
        (drawn(4), ["a"] * 4, range(5), None, "4 embeddings, but 4 splits, 5 contents"),
        (drawn(4), ["a"] * 4, range(4), ["p"], "4 embeddings, but .* other patients"),
        (drawn(4) * np.float32(np.nan), ["a"] * 4, range(4), None, "some embeddings are NaN or infinite"),
    ],
)
def test_gate_refuses_what_does_not_fit(
    x: Embeddings, splits: list[str], contents: range, patients: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        looked_for(x, np.array(splits), contents, patients)


def test_threshold_that_is_no_cosine_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold must be between 0 and 1, not 1"):
        looked_for(drawn(4), halves(4), range(4), threshold=1)


# -- real embeddings ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a demo set with one image again as JPEGs of other qualities, once smaller, and once as the same bytes."""
    folder = tmp_path_factory.mktemp("leaky")
    write_demo(folder / "images", n_images=60)
    victim = sorted((folder / "images" / "benign").glob("*.png"))[0]
    with Image.open(victim) as image:
        grey = image.convert("L")
        for quality in (90, 60):
            grey.save(folder / "images" / "benign" / f"copy{quality}.jpg", quality=quality)
        smaller = grey.resize((grey.width * 3 // 4, grey.height * 3 // 4), Image.Resampling.BICUBIC)
        smaller.save(folder / "images" / "benign" / "smaller.png")
    (folder / "images" / "benign" / "same.png").write_bytes(victim.read_bytes())
    rows = (folder / "images" / "labels.csv").read_text().splitlines()
    names = ("copy90.jpg", "copy60.jpg", "smaller.png", "same.png")
    rows += [f"benign/{name},benign,new{i},A" for i, name in enumerate(names)]
    (folder / "images" / "labels.csv").write_text("\n".join(rows) + "\n")
    extract(folder / "images", folder / "cache.h5", options=ExtractOptions(weights="random:0"))
    return folder / "cache.h5"


def gate(cache: Path, *, without_copies: bool) -> tuple[Leakage, list[str]]:
    """Look at the demo set, its own images split by patient and all copies in a split of their own."""
    with EmbeddingCache(cache) as opened:
        table = opened.dataset()
        x, _ = opened.arrays(table)
    assert table.patients is not None
    copies = np.array([patient.startswith("new") for patient in table.patients])
    y = np.unique(np.array(table.labels), return_inverse=True)[1].astype(np.int64)
    splits = split(y, merged_groups(table.patients), ("benign", "malignant", "normal"))
    splits[copies] = "other"
    kept = ~copies if without_copies else np.ones(len(y), bool)
    patients = [patient for patient, keep in zip(table.patients, kept, strict=True) if keep]
    report = looked_for(x[kept], splits[kept], table.rows[kept].tolist(), patients)
    return report, [path for path, keep in zip(table.paths, kept, strict=True) if keep]


def test_reencoded_and_scaled_copies_and_the_same_bytes_are_caught(leaky: Path) -> None:
    report, paths = gate(leaky, without_copies=False)
    original = min(path for path in paths if path.startswith("benign/p"))
    found = {frozenset((paths[int(pair.first)], paths[int(pair.second)])) for pair in report.near_duplicates}
    assert found == {frozenset((original, f"benign/{name}")) for name in ("copy90.jpg", "copy60.jpg", "smaller.png")}
    assert [(paths[int(pair.first)], paths[int(pair.second)]) for pair in report.contents] == [
        (original, "benign/same.png")
    ]


def test_demo_set_as_shipped_is_clean(leaky: Path) -> None:
    assert is_clean(gate(leaky, without_copies=True)[0])
