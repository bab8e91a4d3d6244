"""Training, validation and test splits, by patient and seeded; and folds, stratified by class too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.experiment.identities import Identities, draws_of
from hoarfrost.features.errors import TrainingError

VAL_SHARE = 0.1
TEST_SHARE = 0.2
EXTERNAL = "external"  # the rule of a cohort that is only scored

Strings = npt.NDArray[np.str_]


def merged_groups(*memberships: Sequence[object] | Ints) -> Ints:
    """Join images that share a patient, bytes, or any other membership into groups.

    Parameters
    ----------
    *memberships : sequences of length n
        Images with equal entries in any of them belong together.

    Returns
    -------
    ndarray (n,) int64
        Group numbers, 0 upwards in the order of first appearance.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(memberships[0])
    firsts = [_first_places(membership) for membership in memberships]
    rows, columns = np.concatenate(firsts), np.tile(np.arange(n), len(firsts))
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(n, n))
    labels: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels


def _first_places(membership: Sequence[object] | Ints) -> Ints:
    """Return for each entry the place of the first equal one."""
    if isinstance(membership, np.ndarray):
        _, first, number = np.unique(membership, return_index=True, return_inverse=True)
        places: Ints = first[number]
        return places
    seen: dict[object, int] = {}
    return np.fromiter((seen.setdefault(value, i) for i, value in enumerate(membership)), np.int64, len(membership))


def class_masks(y: Ints, classes: Sequence[str]) -> "dict[str, npt.NDArray[np.bool_]]":
    """Return which images are of each class; or, with several labels per image, which have each label and which do not.

    Parameters
    ----------
    y : ndarray (n,) int64, class numbers; or (n, C) int64 of 0, 1 and -1 where a label is unknown
    classes : sequence of str, length C

    Returns
    -------
    dict of ndarray (n,) bool, by the words that messages use
    """
    if y.ndim == 1:
        return {f"the class {label!r}": y == number for number, label in enumerate(classes)}
    having = {f"the label {label!r}": y[:, number] == 1 for number, label in enumerate(classes)}
    return having | {f"the absence of {label!r}": y[:, number] == 0 for number, label in enumerate(classes)}


def _strata(y: Ints, groups: Ints, classes: Sequence[str], fewest: int) -> tuple[Ints, Sequence[str]]:
    """Return one class per image to stratify by, and the names: its own class, or the rarest of its labels.

    A stratum of fewer than `fewest` groups joins the largest one: combinations of labels are not classes.
    """
    if y.ndim == 1:
        return y, classes
    has = y == 1  # (n, C)
    rarity = np.where(has, has.sum(0), len(y) + 1)
    stratum = np.where(has.any(1), rarity.argmin(1) + 1, 0)  # 0: none of the labels
    present, sizes = np.unique(stratum, return_counts=True)
    largest = present[sizes.argmax()]
    for number in present:
        if len(np.unique(groups[stratum == number])) < fewest:
            stratum[stratum == number] = largest
    present, renumbered = np.unique(stratum, return_inverse=True)
    names = ["none of the labels", *classes]
    return renumbered.astype(np.int64), [names[number] for number in present]


def strata_of_groups(y: Ints, groups: Ints, classes: Sequence[str], fewest: int) -> tuple[Ints, Ints, Sequence[str]]:
    """Return the groups, the class that each is divided by, and the names of these classes.

    A patient with images of two classes counts for the rarer class.
    """
    y, classes = _strata(y, groups, classes, fewest)
    rarity = np.argsort(np.argsort(np.bincount(y, minlength=len(classes))))
    by_rarity = np.argsort(rarity[y], kind="stable")
    names, first = np.unique(groups[by_rarity], return_index=True)
    return names, y[by_rarity][first], classes


def split(
    y: Ints, groups: Ints, classes: Sequence[str], *, seed: int = 0, identities: Identities | None = None
) -> Strings:
    """Split images into train, val and test, 70/10/20 on average.

    Parameters
    ----------
    y : ndarray (n,) or (n, C) int64
        Class numbers, or labels; see `class_masks`.
    groups : ndarray (n,) int64
        No group is in two splits.
    classes : sequence of str
        Names, for messages.
    seed : int
    identities : ndarray (n,) uint64, optional
        See `identities_of`; by default the group numbers.

    Returns
    -------
    ndarray (n,) of "train", "val" or "test"
        Each split gets at least one group of each class, and at least two if the class has six or more: a class with one
        image cannot be scored.

    Raises
    ------
    TrainingError
        If a class has fewer than three groups.

    Notes
    -----
    A keyed hash of a group's identity is a number between 0 and 1, and its range decides the split. It does not depend on
    other groups, so that a group keeps its split when others are added. The price: the sizes of splits are random, with a
    standard deviation of sqrt(n share (1 - share)). Groups are moved only where a split has too few of a class.
    """
    return _divide(y, groups, classes, {"test": TEST_SHARE, "val": VAL_SHARE}, seed, identities)


def carve_validation(
    y: Ints, groups: Ints, classes: Sequence[str], *, seed: int = 0, identities: Identities | None = None
) -> Strings:
    """Divide given training images into train and val (one in eight), as `split` does."""
    return _divide(y, groups, classes, {"val": VAL_SHARE / (1 - TEST_SHARE)}, seed, identities)


def _divide(
    y: Ints, groups: Ints, classes: Sequence[str], shares: dict[str, float], seed: int, identities: Identities | None
) -> Strings:
    names = (*shares, "train")
    numbers, group = np.unique(groups, return_inverse=True)
    draws = draws_of(group, groups.astype(np.uint64) if identities is None else identities, seed)  # (G,)
    ends = np.cumsum(list(shares.values()))
    place = np.searchsorted(ends, draws, side="right")  # (G,) which of `names`
    has, fewest = [], []  # of each class: which groups have it, and how many each split needs
    for which, mask in class_masks(y, classes).items():
        members = np.zeros(len(numbers), bool)
        members[group[mask]] = True
        n = int(members.sum())
        if n >= len(names):
            has.append(members)
            fewest.append(2 if n >= 2 * len(names) else 1)
        elif y.ndim == 1:
            raise TrainingError(
                f"{which[0].upper()}{which[1:]} has {n} patient(s) (or images, if patients are unknown). At least "
                f"{len(names)} are needed, one each for train, {', '.join(shares)}. Add images or a split column."
            )
    if has:
        middles = (np.concatenate([[0.0], ends]) + np.concatenate([ends, [1.0]])) / 2
        _fill(place, np.array(has), np.array(fewest), np.abs(draws[:, None] - middles))
    return np.array(names, dtype="<U5")[place][group]


def _fill(place: Ints, has: npt.NDArray[np.bool_], fewest: Ints, distance: Floats) -> None:
    """Move groups, in place, until each split has enough groups of each class, the rarest class first.

    `place` (G,) is each group's split, `has` (C, G) whether it has a class, `fewest` (C,) how many groups of a class each
    split needs, `distance` (G, S) how far a group's draw is from a split's range. A group moves only if the split that it
    leaves keeps enough of all of its classes; where none may, the split stays as it is.
    """
    n_splits = distance.shape[1]
    for number in np.argsort(has.sum(1), kind="stable"):
        for wanted in range(n_splits):
            while (has[number] & (place == wanted)).sum() < fewest[number]:
                counts = np.stack([(has & (place == at)).sum(1) for at in range(n_splits)])  # (S, C)
                is_spare = (counts > fewest)[place].T | ~has  # (C, G)
                movable = np.flatnonzero(has[number] & (place != wanted) & is_spare.all(0))
                if not len(movable):
                    break
                place[movable[distance[movable, wanted].argmin()]] = wanted


def most_folds(y: Ints, groups: Ints, classes: Sequence[str]) -> int:
    """Return the largest number of folds that could all have each class: the number of groups of the rarest one."""
    return min(len(np.unique(groups[mask])) for mask in class_masks(y, classes).values())


def k_folds(y: Ints, groups: Ints, classes: Sequence[str], n_folds: int, *, seed: int = 0, what: str = "") -> Ints:
    """Divide images into folds, stratified by class; a group is always in one fold.

    Parameters
    ----------
    y : ndarray (n,) or (n, C) int64
        Class numbers, or labels; see `class_masks`.
    groups : ndarray (n,) int64
    classes : sequence of str
        Names, for messages.
    n_folds : int
        At least two.
    seed : int
    what : str, optional
        What is divided, for messages; by default the option --folds.

    Returns
    -------
    ndarray (n,) int64
        The fold that each image is held out in, 0 to n_folds - 1; every class is in each.

    Raises
    ------
    TrainingError
        If there are fewer groups than folds, of all images or of a class.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    what = what or f"--folds {n_folds}"
    n_groups = len(np.unique(groups))
    if n_groups < n_folds:
        raise TrainingError(
            f"{what}: there are {n_groups} patients (or images, if patients are unknown). "
            f"Use at most --folds {n_groups}."
        )
    masks = class_masks(y, classes)
    for which, mask in masks.items():
        n_groups = len(np.unique(groups[mask]))
        if n_groups < n_folds:
            raise TrainingError(
                f"{what}: {which} has {n_groups} patient(s) (or images, if patients are unknown), too few for one "
                f"in each fold. Use at most --folds {n_groups}, or add images."
            )
    strata, _ = _strata(y, groups, classes, n_folds)
    folds = np.empty(len(y), np.int64)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed % 2**32)
    for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(y)), strata, groups)):
        folds[held_out] = fold
    for which, mask in masks.items():
        if len(np.unique(folds[mask])) < n_folds:
            raise TrainingError(
                f"{what}: the patients cannot be divided so that {which} is in each fold. Use fewer folds."
            )
    return folds


# -- rules: where a dataset's splits come from, and the words for it ----------------------------------------------------


@dataclass(frozen=True)
class SplitInput:
    """What a rule may use: n images that have an embedding.

    Attributes
    ----------
    y : ndarray (n,) or (n, C) int64
        Class numbers, or labels; see `class_masks`.
    groups : ndarray (n,) int64
        Images of the same patient, or of the same bytes, have the same number.
    classes : sequence of str
        Names, for messages.
    seed : int
    given : ndarray (n,) of "train", "val" or "test", or None
        The dataset's own splits.
    knows_patients : bool
    cross_fit : bool
        No validation split is needed: its images are training images.
    identities : ndarray (n,) uint64
        See `identities_of`.
    earlier : ndarray (n,) of "train", "val" or "test", or None
        The splits of an earlier run that are to be kept; empty for images that it did not have.
    column : callable
        From the name of a further column of the dataset to its n texts; None if it has no such column.
    """

    y: Ints
    groups: Ints
    classes: Sequence[str]
    seed: int
    given: Strings | None
    knows_patients: bool
    cross_fit: bool
    identities: Identities
    earlier: Strings | None
    column: Callable[[str], Sequence[str] | None]

    def gives(self, split: str) -> bool:
        """Return whether the dataset itself states which images are in a split."""
        return self.given is not None and bool((self.given == split).any())


@dataclass(frozen=True)
class SplitRule:
    """One way to divide images into train, validation and test, with the words for it.

    Attributes
    ----------
    name : str
        The name in config.json.
    brief : str
        Follows "split" in a line of text.
    origin : str
        Where the splits come from, in tables.
    method : str
        The beginning of a sentence in the methods paragraph; "{seed}" stands for the seed.
    applies : callable
        Returns whether a dataset is split by this rule.
    divide : callable
        Returns the split of each image, (n,) of "train", "val" or "test".
    """

    name: str
    brief: str
    origin: str
    method: str
    applies: Callable[[SplitInput], bool]
    divide: Callable[[SplitInput], Strings]


def _as_given(images: SplitInput) -> Strings:
    assert images.given is not None
    return _without_validation(images.given) if images.cross_fit else images.given


def _without_validation(splits: Strings) -> Strings:
    """Return the splits with the validation images among the training images."""
    return np.where(splits == "val", "train", splits)


def _with_validation_from_train(images: SplitInput) -> Strings:
    return _carved(images, _as_given(images).copy())


def _carved(images: SplitInput, splits: Strings) -> Strings:
    """Return the splits with a validation split from the training images, unless none is needed."""
    train = splits == "train"
    if not images.cross_fit:
        splits[train] = carve_validation(
            images.y[train], images.groups[train], images.classes, seed=images.seed, identities=images.identities[train]
        )
    return splits


def _drawn(images: SplitInput) -> Strings:
    drawn = split(images.y, images.groups, images.classes, seed=images.seed, identities=images.identities)
    return _without_validation(drawn) if images.cross_fit else drawn


def _as_earlier(images: SplitInput) -> Strings:
    """Keep an earlier run's splits. Another image joins the split of its group; if that is new too, it is drawn."""
    assert images.earlier is not None
    known = images.earlier != ""
    number = np.unique(images.groups, return_inverse=True)[1]
    of_group = np.full(int(number.max()) + 1, "", images.earlier.dtype)
    of_group[number[known]] = images.earlier[known]
    kept = np.where(known, images.earlier, of_group[number])
    splits = np.where(kept != "", kept, _drawn(images)).astype("<U5")
    if images.cross_fit:
        return _without_validation(splits)
    return splits if (kept == "val").any() else _carved(images, _without_validation(splits))


SPLIT_RULES = (
    SplitRule(
        name="earlier run",
        brief="as in an earlier run",
        origin="those of an earlier run; for images that it did not have, drawn here",
        method="The splits were those of an earlier run; further images were assigned at random (seed {seed})",
        applies=lambda images: images.earlier is not None,
        divide=_as_earlier,
    ),
    SplitRule(
        name="given",
        brief="as given by the dataset",
        origin="given by the dataset",
        method="The splits were those of the dataset",
        applies=lambda images: images.gives("val") or (images.given is not None and images.cross_fit),
        divide=_as_given,
    ),
    SplitRule(
        name="given, val from train",
        brief="as given by the dataset, val taken from train",
        origin="given by the dataset, but validation taken from its train split",
        method="The test split was that of the dataset; validation was taken from its training split",
        applies=lambda images: images.given is not None,
        divide=_with_validation_from_train,
    ),
    SplitRule(
        name=EXTERNAL,
        brief="none, all external",
        origin="none: no image of this cohort was used in training",
        method="No image of this cohort was used in training",
        applies=lambda _: False,
        divide=_as_given,
    ),
    SplitRule(
        name="patient",
        brief="by patient",
        origin="drawn here, by patient",
        method="They were split at random, with a least number of each class in each split, so that no patient is in two "
        "splits (seed {seed})",
        applies=lambda images: images.knows_patients,
        divide=_drawn,
    ),
    SplitRule(
        name="image",
        brief="by image",
        origin="drawn here, by image",
        method="They were split at random by image, with a least number of each class in each split, because patients are "
        "unknown (seed {seed})",
        applies=lambda _: True,
        divide=_drawn,
    ),
)
"""All rules. The first one that applies to a dataset is used."""


def rule_of(images: SplitInput) -> SplitRule:
    """Return the rule by which a dataset is split."""
    return next(rule for rule in SPLIT_RULES if rule.applies(images))


def rule_named(name: str) -> SplitRule:
    """Return the rule of a name; for a name that a later version wrote, a rule that uses the name as its words."""
    later = SplitRule(name, f"by {name}", name, name, lambda _: False, _drawn)
    return next((rule for rule in SPLIT_RULES if rule.name == name), later)
