"""Near-identical images: searched before the splits are made, and kept together where patients are unknown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation.checks import Ints
from hoarfrost.evaluation.leakage import MOST_LISTED, DifferentLabels, KeptTogether
from hoarfrost.evaluation.near_duplicates import NearPairs, near_groups, near_pairs, of_images
from hoarfrost.features.devices import one_thread
from hoarfrost.training import Looks, StreamedRows
from hoarfrost.training.rows import gathered

GROUP, WARN, IGNORE = "group", "warn", "ignore"
FEWEST_FOR_CORES = 10_000  # images: with fewer one core is faster than several that wait for one another
MOST_COMPARED = 200_000  # images: two minutes on two cores; the time grows with the square of their number


@dataclass(frozen=True)
class NearDuplicates:
    """What is known of near-identical images before they are split.

    Attributes
    ----------
    mode : str
        "group", "warn" or "ignore".
    pairs : NearPairs or None
        All pairs; None if they are searched later, between splits only, or not at all.
    groups : ndarray (n,) int64 or None
        Equal numbers for images that no split and no fold may divide.
    not_compared : str
        Why there is no search; empty if there is.
    """

    mode: str
    pairs: NearPairs | None = None
    groups: Ints | None = None
    not_compared: str = ""

    @property
    def memberships(self) -> tuple[Ints, ...]:
        """The groups, if there are any, as `merged_groups` takes them."""
        return () if self.groups is None else (self.groups,)


def search_near_duplicates(
    looks: Looks, mode: str, *, knows_patients: bool, given_test: npt.NDArray[np.bool_] | None = None
) -> NearDuplicates:
    """Search near-identical images among all images, if they are to be kept together.

    Parameters
    ----------
    looks : Looks
        Embeddings of n images, finite. Those of the first view are compared, in the encoder's last layer, see `pairs_among`.
    mode : str
        "group": keep them together where patients are unknown. "warn": search them between splits only. "ignore".
    knows_patients : bool
        The patients are then the groups.
    given_test : ndarray (n,) bool, optional
        The images of a test split that the dataset brings. They are in no group: nothing that is decided on the other
        images may depend on them.
    """
    not_compared = _why_not_compared(looks, mode)
    if not_compared or knows_patients or mode != GROUP:
        return NearDuplicates(mode, not_compared=not_compared)
    rows = np.arange(len(looks)) if given_test is None else np.flatnonzero(~given_test)
    pairs = pairs_among(looks, rows)
    groups = np.arange(len(looks)) + len(rows)  # numbers that no group has
    groups[rows] = near_groups(pairs, len(rows))
    return NearDuplicates(mode, pairs if given_test is None else None, groups)


def pairs_among(looks: Looks, images: Ints) -> NearPairs:
    """Return the near-identical pairs among some images, as places in `images`; and across mirror images, if there are any.

    With very many images mirror images are not compared: the time grows with the square of the number of embeddings.
    """
    sides = [looks.first(looks.last_layer)]
    if has_mirror_images(looks):
        mirrored = looks.views.index(_mirrored(looks.views[0]))
        sides.append(looks.chosen((mirrored,), looks.columns(looks.last_layer), average=False))
    with one_thread(only_if=len(images) < FEWEST_FOR_CORES):
        return of_images(near_pairs(np.concatenate([gathered(side, images) for side in sides])), len(images))


def has_mirror_images(looks: Looks) -> bool:
    """Return whether mirror images are compared too."""
    return _mirrored(looks.views[0]) in looks.views and 2 * len(looks) <= MOST_COMPARED


def _mirrored(view: str) -> str:
    """Return the name of a view's mirror image: "flip" is the last part of a name."""
    return view.removesuffix(":flip") if view.endswith(":flip") else f"{view}:flip"


def kept_together(near: NearDuplicates, paths: Sequence[str], labels: Sequence[str]) -> KeptTogether | None:
    """Count the groups of near-identical images, and list those with different labels."""
    if near.groups is None:
        return None
    order = np.argsort(near.groups, kind="stable")
    starts = np.flatnonzero(np.diff(near.groups[order], prepend=-1))
    groups = [places.tolist() for places in np.split(order, starts[1:]) if len(places) > 1]
    mixed = []
    for first, *others in groups:
        other = next((place for place in others if labels[place] != labels[first]), None)
        if other is not None:
            mixed.append(DifferentLabels(paths[first], labels[first], paths[other], labels[other]))
    sizes = [len(places) for places in groups]
    return KeptTogether(sum(sizes), len(sizes), max(sizes, default=0), len(mixed), tuple(mixed[:MOST_LISTED]))


def _why_not_compared(looks: Looks, mode: str) -> str:
    if mode == IGNORE:
        return "--near-duplicates ignore"
    if len(looks) > MOST_COMPARED:
        return f"{len(looks):,} images are too many to compare with one another"
    return "the embeddings do not fit into the memory limit" if isinstance(looks.rows, StreamedRows) else ""
