"""What a head looks at: views by their places, and layers by their columns, among those that embeddings come in."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.heads.layers import Columns


class MemberViews(NamedTuple):
    """The views of a member by their places, and whether it takes their mean embedding."""

    places: tuple[int, ...]
    averages: bool


ONE_VIEW = MemberViews((0,), averages=True)


def member_views(spec: HeadSpec, views: Sequence[str]) -> MemberViews:
    """Return the views of a head's member among those that embeddings come in; raises as `places_of`."""
    return MemberViews(places_of(spec.view_names, views), spec.AVERAGES_VIEWS)


def places_of(names: Sequence[str], views: Sequence[str]) -> tuple[int, ...]:
    """Return the places of some views among `views`; of all if none are named.

    Raises
    ------
    TrainingError
        If a view is not there.
    """
    missing = [name for name in names if name not in views]
    if missing:
        raise TrainingError(
            f"--head …,views={'+'.join(names)}: the view {missing[0]} is not among those of this training: "
            f"{', '.join(views)}. Extract with --views {missing[0]} too, or name others."
        )
    return tuple(views.index(name) for name in names) or tuple(range(len(views)))


def columns_of(numbers: Sequence[int], layers: Mapping[int, slice]) -> Columns:
    """Return the columns of some layers, from those of all; empty for all.

    Raises
    ------
    TrainingError
        If a layer is not there.
    """
    if not numbers or tuple(numbers) == tuple(layers):
        return ()
    missing = [number for number in numbers if number not in layers]
    if missing:
        found = ", ".join(map(str, layers)) or "the last one only"
        raise TrainingError(
            f"--head …,layers={'+'.join(map(str, numbers))}: there are no embeddings of layer {missing[0]}. There are: "
            f"{found}. Extract into another cache with --layers, or name others."
        )
    return tuple((layers[number].start, layers[number].stop) for number in numbers)
