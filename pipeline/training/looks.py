"""Several embeddings of each image: of the encoder's views, and of its layers. A head learns from some of both."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.heads.layers import Columns, chosen_columns
from hoarfrost.heads.views import columns_of, places_of
from hoarfrost.training.rows import BLOCK_ROWS, TRANSFORMED_NUMBERS, HeldRows, Ints, Rows, gathered

ONLY_VIEW = ("",)


@dataclass(frozen=True)
class Looks:
    """Embeddings of n images in V views.

    Attributes
    ----------
    rows : Rows
        (n * V, D): image i in view v is row i * V + v.
    views : tuple of str
        The names of the views.
    layers : mapping of int to slice
        The columns of each of the encoder's layers; empty if there is one.
    """

    rows: Rows
    views: tuple[str, ...] = ONLY_VIEW
    layers: Mapping[int, slice] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows) // len(self.views)

    def columns(self, numbers: Sequence[int]) -> Columns:
        """Return the columns of some layers, see `hoarfrost.heads.views.columns_of`."""
        return columns_of(numbers, self.layers)

    def of(self, spec: HeadSpec) -> tuple[Rows, int]:
        """Return what a head learns from, (n * k, d), and k: its looks at an image, or their mean as one."""
        places = places_of(spec.view_names, self.views)
        found = self.chosen(places, self.columns(spec.layer_numbers), average=spec.AVERAGES_VIEWS)
        return found, len(found) // len(self)

    @property
    def last_layer(self) -> tuple[int, ...]:
        """The number of the last layer; empty if there is only one."""
        return (max(self.layers),) if self.layers else ()

    def first(self, layers: Sequence[int] = ()) -> Rows:
        """Return the embeddings (n, d) of the first view, of some layers or all."""
        return self.chosen((0,), self.columns(layers), average=False)

    def mean(self, views: Sequence[str]) -> Rows:
        """Return the mean embedding (n, D) of some views."""
        return self.chosen(places_of(views, self.views), (), average=True)

    def chosen(self, places: tuple[int, ...], columns: Columns, *, average: bool) -> Rows:
        """Return some views and columns, as (n * k, d) or their mean (n, d); as a copy in memory if that is small."""
        is_all = places == tuple(range(len(self.views)))
        average = average and len(places) > 1
        if is_all and not columns and not average:
            return self.rows
        lazy = ChosenRows(self.rows, len(self.views), places, columns, average=average)
        rows = self.rows
        if isinstance(rows, HeldRows) and rows.x.device == rows.device and rows.x.numel() <= TRANSFORMED_NUMBERS:
            return HeldRows(lazy.take(torch.arange(len(lazy), device=rows.device)))
        return lazy

    def array(self) -> npt.NDArray[np.float32]:
        """Return all embeddings (n, V, D)."""
        return gathered(self.rows, np.arange(len(self.rows))).reshape(len(self), len(self.views), -1)

    def blocks(self, rows: Ints) -> Iterator[tuple[Ints, Tensor]]:
        """Yield the embeddings of some images: places in `rows` (k,), and (k, D), or (k, V, D) of several views."""
        n_views = len(self.views)
        if n_views == 1:
            yield from self.rows.blocks(rows)
            return
        for first in range(0, len(rows), BLOCK_ROWS // n_views):
            places = np.arange(first, min(first + BLOCK_ROWS // n_views, len(rows)))
            yield places, self.rows.take(torch.from_numpy(look_rows(rows[places], n_views).reshape(-1, n_views)))


def look_rows(images: Ints, n_looks: int) -> Ints:
    """Return the rows (m * k,) of all looks at some images (m,)."""
    found: Ints = (images[:, None] * n_looks + np.arange(n_looks)).ravel()
    return found


class ChosenRows:
    """Some views and columns of rows, chosen each time they are taken; or the mean of these views.

    Parameters
    ----------
    x : Rows
        (n * V, D), V views of each image.
    places : tuple of int
        The k chosen views.
    columns : ranges of columns
    average : bool
        Row i is the mean of image i's views; otherwise row i * k + j is its j-th chosen view.
    """

    def __init__(self, x: Rows, n_views: int, places: tuple[int, ...], columns: Columns, *, average: bool) -> None:
        self.device, self.place, self.dtype = x.device, x.place, x.dtype
        self.most_held, self.release = x.most_held, x.release
        self.n_features = sum(end - first for first, end in columns) if columns else x.n_features
        self._x, self._n_views, self._columns, self._average = x, n_views, columns, average
        self._places = torch.tensor(places)
        self._places_there = self._places.to(x.place)

    def __len__(self) -> int:
        return len(self._x) // self._n_views * (1 if self._average else len(self._places))

    def _base(self, rows: Tensor) -> Tensor:
        """Return the rows (...) of `x`, or (..., k) of all views."""
        places = self._places if rows.device.type == "cpu" else self._places_there
        if self._average:
            return rows[..., None] * self._n_views + places
        return rows // len(places) * self._n_views + places[rows % len(places)]

    def take(self, rows: Tensor) -> Tensor:
        """Return rows."""
        found = chosen_columns(self._x.take(self._base(rows.to(self.place))), self._columns)
        return found.mean(-2) if self._average else found

    def blocks(self, rows: Ints) -> Iterator[tuple[Ints, Tensor]]:
        """Yield blocks of rows, in the cheapest order unless views are averaged."""
        if not self._average:
            for places, part in self._x.blocks(self._base(torch.from_numpy(rows)).numpy()):
                yield places, chosen_columns(part, self._columns)
            return
        step = max(1, BLOCK_ROWS // len(self._places))
        for first in range(0, len(rows), step):
            some = np.arange(first, min(first + step, len(rows)))
            yield some, self.take(torch.from_numpy(rows[some]))

    def shuffled(self, rows: Ints, generator: torch.Generator, epoch: int) -> Ints:
        """Return the order of rows (m,) in an epoch, as places in `rows`; of means by where their first views are."""
        base = self._base(torch.from_numpy(rows)).numpy()
        return self._x.shuffled(base[:, 0] if self._average else base, generator, epoch)

    def hold(self, rows: Ints) -> None:
        """Keep the rows below these in memory if possible."""
        self._x.hold(np.unique(self._base(torch.from_numpy(rows)).numpy()))
