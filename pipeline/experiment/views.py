"""Which views a training uses: those that all images have, the sets that are compared, and what each head looks at."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hoarfrost.evaluation.checks import Ints
from hoarfrost.features.cache import DatasetTable, EmbeddingCache
from hoarfrost.features.decoding.views import View, grouped, parse_views
from hoarfrost.features.encoder.registry import EncoderSpec
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.kinds import HeadSpec

AUTO = "auto"

logger = logging.getLogger(__name__)


def chosen_views(cache: EmbeddingCache, table: DatasetTable, views: str) -> tuple[tuple[str, ...], Ints]:
    """Return the names of the views to train on, and the rows (n, V) of the readable images' embeddings.

    Parameters
    ----------
    views : str
        Names of views or of sets of views; "auto" for all that each image has.

    Raises
    ------
    TrainingError
        If an image does not have a view that was named, or no view is there of all images.
    """
    own = table.rows[table.rows >= 0]
    encoder = cache.header.fingerprint.encoder
    if views == AUTO:
        names = cache.views
    else:
        names = tuple(view.name for view in parse_views(views, encoder))
        absent = [name for name in names if name not in cache.views]
        if absent:
            raise TrainingError(
                f"--views {views}: the cache {cache.path} has no embeddings of the view {absent[0]}. It has: "
                f"{', '.join(cache.views)}. Add it: hoarfrost extract DATA --cache {cache.path} --views {absent[0]}"
            )
    rows = cache.view_rows(own, names)
    lacking = {name: int((column < 0).sum()) for name, column in zip(names, rows.T, strict=True)}
    complete = [place for place, name in enumerate(names) if not lacking[name]]
    incomplete = ", ".join(f"{name} ({n} of {len(own)} images)" for name, n in lacking.items() if n)
    way_out = "Run `hoarfrost extract` again with all these --views to add them."
    if incomplete and (views != AUTO or not complete):
        raise TrainingError(f"{table.name}: embeddings are missing for the views {incomplete}. {way_out}")
    if incomplete:
        logger.warning(
            "%s: not used, because embeddings are missing: the views %s. %s", table.name, incomplete, way_out
        )
    return tuple(names[place] for place in complete), np.ascontiguousarray(rows[:, complete])


@dataclass(frozen=True)
class ViewSet:
    """Views that a head may use together.

    Attributes
    ----------
    units : tuple of tuples of str
        The names of the views that each member uses: one size and geometry.
    """

    units: tuple[tuple[str, ...], ...]

    @property
    def views(self) -> tuple[str, ...]:
        """The names of all its views."""
        return tuple(name for unit in self.units for name in unit)

    @property
    def name(self) -> str:
        """The names of its views in one text."""
        return ", ".join(self.views)


def view_sets(names: Sequence[str], encoder: EncoderSpec, *, are_chosen: bool) -> tuple[ViewSet, ...]:
    """Return the sets of views that are compared: the first view alone, each size and geometry, and all of them.

    If the user has chosen the views there is one set, of all. With one view there is nothing to compare.
    """
    views: dict[View, str] = {parse_views(name, encoder)[0]: name for name in names} if len(names) > 1 else {}
    units = [tuple(views[view] for view in some) for some in grouped(list(views)).values()] or [tuple(names)]
    everything = ViewSet(tuple(units))
    if are_chosen or len(names) == 1:
        return (everything,)
    candidates = [ViewSet(((names[0],),)), *(ViewSet((unit,)) for unit in units), everything]
    return tuple(dict.fromkeys(candidates))


def looking_at(spec: HeadSpec, unit: Sequence[str], n_views: int) -> HeadSpec | None:
    """Return a head that looks at the views of a unit; None if its own views are others.

    Where the task has one view nothing is written into the head's name.
    """
    if spec.views is None:
        return spec if n_views == 1 else replace(spec, views="+".join(unit))
    own = set(spec.view_names)
    shared = [name for name in unit if name in own]
    return replace(spec, views="+".join(shared)) if shared else None


def with_layers(spec: HeadSpec, layers: Mapping[int, slice]) -> tuple[HeadSpec, ...]:
    """Return a head with all layers, and with the last alone, unless it states its layers or there is only one."""
    if spec.layers is not None or len(layers) < 2:
        return (spec,)
    return spec, replace(spec, layers=str(max(layers)))
