"""Splits: by patient, stratified, seeded, and refused where they would be undefined."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from hoarfrost.experiment.splits import carve_validation, class_masks, k_folds, merged_groups, split, strata_of_groups
from hoarfrost.features.errors import TrainingError

Ints = npt.NDArray[np.int64]
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[Ints, list[str], list[int]]:
    """Draw images of a few classes, with patients and bytes: (classes, patients, bytes), each of length n."""
    n = draw(st.integers(20, 120))
    n_classes = draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    patients = rng.integers(0, draw(st.integers(10, n)), n)
    # Mostly one class a patient, but not always.
    y = np.where(rng.random(n) < 0.9, patients % n_classes, rng.integers(0, n_classes, n))
    contents = rng.integers(0, draw(st.integers(n, 20 * n)), n)
    return y.astype(np.int64), [f"patient {p}" for p in patients], contents.tolist()


def slow_groups(*memberships: list[object]) -> list[int]:
    """Union-find at its most obvious: relabel until nothing changes, then number by first appearance."""
    labels = list(range(len(memberships[0])))
    changed = True
    while changed:
        changed = False
        for membership in memberships:
            for i in range(len(labels)):
                for j in range(i):
                    if membership[i] == membership[j] and labels[i] != labels[j]:
                        labels[i] = labels[j] = min(labels[i], labels[j])
                        changed = True
    numbers: dict[int, int] = {}
    return [numbers.setdefault(label, len(numbers)) for label in labels]


def splits_of(groups: Ints, splits: npt.NDArray[np.str_]) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for group, name in zip(groups.tolist(), splits.tolist(), strict=True):
        found.setdefault(group, set()).add(name)
    return found


@pytest.mark.parametrize("sizes", [(100, 300), (15, 17, 23), (1000, 99), (16, 16)], ids=str)
def test_each_class_is_shared_out_70_10_20_on_average_and_within_four_standard_deviations(
    sizes: tuple[int, ...],
) -> None:
    y = np.repeat(np.arange(len(sizes)), sizes)
    names = [f"class {c}" for c in range(len(sizes))]
    drawn = np.stack([split(y, np.arange(len(y)), names, seed=seed) for seed in range(50)])
    for number, size in enumerate(sizes):
        for name, share in SHARES.items():
            counts = (drawn[:, y == number] == name).sum(axis=1)
            deviation = (size * share * (1 - share)) ** 0.5
            assert (np.abs(counts - share * size) <= 4 * deviation).all()
            assert abs(counts.mean() - share * size) <= max(1, 4 * deviation / len(drawn) ** 0.5)


def test_shares_are_of_patients_where_patients_have_several_images() -> None:
    patients = np.repeat(np.arange(200), 3)
    y = (patients % 2).astype(np.int64)
    splits = split(y, patients, ["benign", "malignant"])
    for number in (0, 1):
        counts = {name: len(set(patients[(y == number) & (splits == name)].tolist())) for name in SHARES}
        assert all(
            abs(counts[name] - 100 * share) <= 4 * (100 * share * (1 - share)) ** 0.5 for name, share in SHARES.items()
        )
    assert (splits.reshape(200, 3) == splits[::3, None]).all()


@given(cohorts(), st.integers(0, 2**32 - 1))
def test_patient_is_never_in_two_splits_nor_are_the_same_bytes(
    cohort: tuple[Ints, list[str], list[int]], seed: int
) -> None:
    y, patients, contents = cohort
    groups = merged_groups(contents, patients)
    names = [f"class {c}" for c in range(int(y.max()) + 1)]
    try:
        splits = split(y, groups, names, seed=seed)
    except TrainingError:
        assume(False)
    for column in (patients, contents):
        numbers = np.unique(np.array(column), return_inverse=True)[1]
        assert all(len(found) == 1 for found in splits_of(numbers, splits).values())
    assert set(splits.tolist()) == {"train", "val", "test"}


@given(cohorts(), st.integers(0, 2**32 - 1))
def test_same_seed_gives_the_same_split(cohort: tuple[Ints, list[str], list[int]], seed: int) -> None:
    y, patients, _ = cohort
    groups = merged_groups(patients)
    names = [f"class {c}" for c in range(int(y.max()) + 1)]
    try:
        first = split(y, groups, names, seed=seed)
    except TrainingError:
        assume(False)
    assert (split(y, groups, names, seed=seed) == first).all()


def test_another_seed_gives_another_split() -> None:
    y = np.repeat([0, 1], 50)
    splits = {tuple(split(y, np.arange(100), ["a", "b"], seed=seed).tolist()) for seed in range(5)}
    assert len(splits) == 5


def test_patients_with_images_of_two_classes_are_in_every_split() -> None:
    # Ten patients have a lesion and nine normal images each: every split must get some of the lesions.
    patients = np.concatenate([np.repeat(np.arange(10), 10), np.arange(10, 110)])
    y = np.concatenate([np.tile([0] * 9 + [1], 10), np.zeros(100, np.int64)])
    splits = split(y, patients, ["normal", "lesion"])
    assert min(int((splits[y == 1] == name).sum()) for name in SHARES) >= 2


@pytest.mark.parametrize(("n_rare", "smallest"), [(3, 1), (5, 1), (6, 2), (12, 2)])
def test_small_class_is_in_every_split_twice_where_it_can_be(n_rare: int, smallest: int) -> None:
    y = np.repeat([0, 1], [40, n_rare])
    splits = split(y, np.arange(len(y)), ["common", "rare"])
    assert min(int((splits[y == 1] == name).sum()) for name in SHARES) == smallest


@pytest.mark.parametrize("n_rare", [0, 1, 2])
def test_class_of_fewer_than_three_patients_is_refused_with_its_number(n_rare: int) -> None:
    y = np.repeat([0, 1], [20, n_rare])
    message = rf"class 'rare' has {n_rare} patient\(s\) .*At least 3 are needed, .*train, test, val.*Add images"
    with pytest.raises(TrainingError, match=message):
        split(y, np.arange(len(y)), ["common", "rare"])


def test_many_images_of_one_patient_are_not_many_patients() -> None:
    y = np.repeat([0, 1], [20, 50])
    groups = np.concatenate([np.arange(20), np.full(50, 20)])
    with pytest.raises(TrainingError, match="class 'rare' has 1 patient"):
        split(y, groups, ["common", "rare"])


def test_carved_validation_is_one_in_eight_of_each_class_by_patient() -> None:
    groups = np.repeat(np.arange(80), 2)
    y = (groups % 2).astype(np.int64)
    splits = carve_validation(y, groups, ["a", "b"])
    assert all(len(found) == 1 for found in splits_of(groups, splits).values())
    for number in (0, 1):
        counts = [int((splits[y == number] == name).sum()) for name in ("train", "val", "test")]
        assert sum(counts) == 80
        assert counts[2] == 0
        assert 2 <= counts[1] <= 10 + 4 * (2 * 80 / 8 * 7 / 8) ** 0.5


def test_carving_validation_from_one_patient_is_refused() -> None:
    with pytest.raises(TrainingError, match="class 'b' has 1 patient.*At least 2 are needed, .*train, val"):
        carve_validation(np.repeat([0, 1], 10), np.repeat([0, 1, 2], [5, 5, 10]), ["a", "b"])


@given(
    st.integers(0, 40).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 12), min_size=n, max_size=n), min_size=1, max_size=3)
    )
)
def test_merged_groups_equal_a_slow_union_find(memberships: list[list[object]]) -> None:
    assert merged_groups(*memberships).tolist() == slow_groups(*memberships)


def test_images_linked_through_others_are_one_group() -> None:
    # 0 and 1 share a patient, 1 and 2 the bytes, so 0 and 2 belong together too.
    assert merged_groups(["p", "p", "q", "r"], [10, 11, 11, 12]).tolist() == [0, 0, 0, 1]


# -- by their seed, and folds --------------------------------------------------------------------------------------------


def test_split_is_drawn_by_its_seed() -> None:
    y, groups = np.arange(80) % 2, np.arange(80)
    drawn = [split(y, groups, ["a", "b"], seed=seed).tolist() for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert split(y, groups, ["a", "b"]).tolist() == split(y, groups, ["a", "b"], seed=0).tolist()


def test_image_of_several_labels_is_shared_out_by_the_rarest_that_it_has() -> None:
    """80 images have neither label, 60 the first alone, 40 the second, with the first or without: three strata."""
    y = np.array([[0, 0]] * 80 + [[1, 0]] * 60 + [[1, 1]] * 20 + [[-1, 1]] * 20)
    names, stratum, classes = strata_of_groups(y, np.arange(180), ["first", "second"], 3)
    assert names.tolist() == list(range(180))
    assert [classes[number] for number in stratum] == [
        *["none of the labels"] * 80, *["first"] * 60, *["second"] * 40,
    ]  # fmt: skip
    splits = split(y, np.arange(180), ["first", "second"])
    for first, last in ((0, 80), (80, 140), (140, 180)):
        assert min(int((splits[first:last] == name).sum()) for name in SHARES) >= 2


@pytest.mark.parametrize(("n_rare", "is_its_own"), [(2, False), (3, True)])
def test_labels_that_too_few_patients_have_are_shared_out_with_the_most(n_rare: int, is_its_own: bool) -> None:
    y = np.array([[1, 0]] * 30 + [[0, 0]] * 20 + [[1, 1]] * n_rare)
    _, stratum, classes = strata_of_groups(y, np.arange(len(y)), ["often", "rare"], 3)
    of_rare = {classes[number] for number in stratum[50:]}
    assert of_rare == ({"rare"} if is_its_own else {"often"})
    assert {classes[number] for number in stratum[:50]} == {"none of the labels", "often"}


@pytest.mark.parametrize("seed", range(5))
def test_label_that_three_patients_have_is_in_every_split_and_one_that_two_have_is_no_error(seed: int) -> None:
    often = [[1, 0]] * 30 + [[0, 0]] * 20
    splits = split(np.array([*often, *[[1, 1]] * 3]), np.arange(53), ["often", "rare"], seed=seed)
    assert sorted(splits[50:].tolist()) == ["test", "train", "val"]
    splits = split(np.array([*often, *[[1, 1]] * 2]), np.arange(52), ["often", "rare"], seed=seed)
    assert set(splits[:30]) == set(splits[30:50]) == set(SHARES)


def test_patient_of_two_classes_counts_for_the_rarer_whichever_number_it_has() -> None:
    for rare, often in ((0, 1), (1, 0), (2, 0)):
        y = np.array([often] * 10 + [rare] * 4 + [rare, often])
        groups = np.array([*range(14), 14, 14])
        names, stratum, _ = strata_of_groups(y, groups, ["a", "b", "c"], 3)
        assert stratum[names == 14] == [rare]


def test_class_masks_are_those_of_classes_and_of_labels_there_and_absent() -> None:
    masks = class_masks(np.array([0, 1, 1]), ["a", "b"])
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "the class 'a'": [True, False, False], "the class 'b'": [False, True, True],
    }  # fmt: skip
    masks = class_masks(np.array([[1, 0], [0, -1], [-1, 1]]), ["a", "b"])
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "the label 'a'": [True, False, False], "the label 'b'": [False, False, True],
        "the absence of 'a'": [False, True, False], "the absence of 'b'": [True, False, False],
    }  # fmt: skip


def test_validation_is_carved_by_its_seed() -> None:
    y, groups = np.arange(80) % 2, np.arange(80)
    drawn = [carve_validation(y, groups, ["a", "b"], seed=seed).tolist() for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert carve_validation(y, groups, ["a", "b"]).tolist() == carve_validation(y, groups, ["a", "b"], seed=0).tolist()


@pytest.mark.parametrize("n_folds", [2, 3, 7])
def test_folds_are_as_many_as_asked_for_of_even_size_and_drawn_by_their_seed(n_folds: int) -> None:
    y, groups = np.arange(84) % 2, np.arange(84)
    folds = k_folds(y, groups, ["a", "b"], n_folds, seed=3)
    assert folds.dtype == np.int64
    for label in (0, 1):
        counts = np.bincount(folds[y == label])
        assert len(counts) == n_folds
        assert max(counts) - min(counts) <= 1
    assert k_folds(y, groups, ["a", "b"], n_folds, seed=3).tolist() == folds.tolist()
    assert k_folds(y, groups, ["a", "b"], n_folds, seed=4).tolist() != folds.tolist()
    assert k_folds(y, groups, ["a", "b"], n_folds).tolist() == k_folds(y, groups, ["a", "b"], n_folds, seed=0).tolist()


@pytest.mark.parametrize("seed", [2, 2**31 + 2, 2**32 - 1])
def test_folds_of_a_seed_are_scikit_learns(seed: int) -> None:
    y, groups = np.arange(60) % 2, np.arange(60)
    splitter = StratifiedGroupKFold(3, shuffle=True, random_state=seed)
    expected = [held_out.tolist() for _, held_out in splitter.split(np.zeros(60), y, groups)]
    folds = k_folds(y, groups, ["a", "b"], 3, seed=seed)
    assert [np.flatnonzero(folds == fold).tolist() for fold in range(3)] == expected


def test_as_many_folds_as_patients_of_the_rarest_class_are_possible_and_one_more_is_not() -> None:
    y, groups = np.array([0, 0, 0, 1, 1, 1]), np.arange(6)
    assert sorted(k_folds(y, groups, ["a", "b"], 3).tolist()) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(
        TrainingError, match=r"--folds 4: .*'a'.* has 3 patient\(s\) .*Use at most --folds 3, or add images"
    ):
        k_folds(y, groups, ["a", "b"], 4)
    with pytest.raises(TrainingError, match=r"--folds 7: there are 6 patients .*Use at most --folds 6\."):
        k_folds(y, groups, ["a", "b"], 7)
    assert sorted(k_folds(np.array([[1], [1], [0], [0]]), np.arange(4), ["a"], 2).tolist()) == [0, 0, 1, 1]
