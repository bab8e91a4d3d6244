"""Embeddings by row: in memory, on a GPU, or streamed from a file that is larger than the memory."""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hoarfrost.heads.layers import Columns, Standardise, transformed

Ints = npt.NDArray[np.int64]

BLOCK_ROWS = 16_384  # read at once in a pass over many rows
CHUNK_ROWS = 1_024  # streamed rows are read, kept and dropped in chunks of this size, as the cache stores them
MOST_HELD = 1 << 40  # rows in memory: no limit
TRANSFORMED_NUMBERS = 64_000_000  # a copy of 256 MB; more embeddings are transformed each time they are taken
NEARLY_CONSTANT = 1e-6  # deviation over mean: below it float32 contains only rounding errors
READ_CHUNKS = 16  # at once: enough for two threads; 32 MB above the limit


class Rows(Protocol):
    """Embeddings (n, D) by row number; `take` returns them on `device`."""

    device: torch.device
    dtype: torch.dtype
    n_features: int
    most_held: int
    """How many rows fit into memory at once."""
    place: torch.device
    """Where `take` looks row numbers up: row numbers that are there are not copied."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def take(self, rows: Tensor) -> Tensor:
        """Return the embeddings (..., D) of rows (...) int64, in any order, repeated or not."""

    def blocks(self, rows: Ints) -> Iterator[tuple[Ints, Tensor]]:
        """Yield the embeddings of rows (m,) in the cheapest order: places in `rows` (k,), embeddings (k, D)."""

    def shuffled(self, rows: Ints, generator: torch.Generator, epoch: int) -> Ints:
        """Return the order of rows (m,) in an epoch, as places in `rows`."""

    def hold(self, rows: Ints) -> None:
        """Keep these rows in memory if possible: they will be taken many times."""

    def release(self) -> None:
        """Free the memory that was kept for training."""


class HeldRows:
    """A tensor (n, D) in memory.

    Parameters
    ----------
    x : Tensor (n, D)
    device : torch.device, optional
        Where `take` returns rows; by default the device of `x`.
    """

    def __init__(self, x: Tensor, device: torch.device | None = None) -> None:
        self.x = x
        self.device, self.place = device or x.device, x.device
        self.dtype = x.dtype
        self.n_features = x.shape[1]
        self.most_held = MOST_HELD

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Tensor) -> Tensor:
        """Return rows."""
        found = self.x.index_select(0, rows.to(self.place).flatten())
        return found.view(*rows.shape, self.n_features).to(self.device)

    def blocks(self, rows: Ints) -> Iterator[tuple[Ints, Tensor]]:
        """Yield blocks in the order of `rows`."""
        for first in range(0, len(rows), BLOCK_ROWS):
            places = np.arange(first, min(first + BLOCK_ROWS, len(rows)))
            yield places, self.take(torch.from_numpy(rows[places]))

    def shuffled(self, rows: Ints, generator: torch.Generator, epoch: int) -> Ints:  # noqa: ARG002 - the protocol's
        """Return a random order of all rows."""
        order: Ints = torch.randperm(len(rows), generator=generator).numpy()
        return order

    def hold(self, rows: Ints) -> None:
        """Do nothing: all rows are in memory."""

    def release(self) -> None:
        """Do nothing: all rows stay in memory."""


class StreamedRows:
    """Rows of a file, with a limit on the bytes in memory.

    An epoch's order is drawn in two steps: first random windows of the file's chunks, the same for all heads, which
    therefore read the file once; then the rows of each window, by each head's own generator.

    Parameters
    ----------
    read : callable
        From rows of the file (m,) int64, ascending, to their embeddings (m, D) float32.
    file_rows : ndarray (n,) int64
        The place of each row in the file.
    limit_bytes : int
        For embeddings: an eighth for the windows, at most half for rows to `hold`, and the rest for single passes.
    device : torch.device
        Where `take` returns rows.
    n_looks : int
        At each image. They may lie in as many chunks, so that a window has room for fewer images.
    """

    def __init__(
        self,
        read: Callable[[Ints], npt.NDArray[np.float32]],
        file_rows: Ints,
        n_features: int,
        limit_bytes: int,
        device: torch.device,
        *,
        n_looks: int = 1,
    ) -> None:
        self.device, self.dtype, self.n_features, self.limit_bytes = device, torch.float32, n_features, limit_bytes
        self.place = torch.device("cpu")
        self._read, self._file_rows = read, file_rows
        self._chunks, self._chunk = np.unique(file_rows // CHUNK_ROWS, return_inverse=True)  # those in use; each row's
        self._n_file_rows = int(file_rows.max()) + 1
        n_slots = max(2, limit_bytes // 8 // (CHUNK_ROWS * n_features * 4))
        # Two windows at least: heads of different folds are not at exactly the same place.
        self._window_chunks = max(1, n_slots // 2 // n_looks)
        self._n_slots = min(n_slots, len(self._chunks))
        self.most_held = limit_bytes // 2 // (n_features * 4)
        self.release()

    def release(self) -> None:
        """Free the windows and the held rows."""
        self._buffer = torch.empty((self._n_slots * CHUNK_ROWS, self.n_features))  # takes no memory until it is written
        self._slot = np.full(len(self._chunks), -1, np.int64)  # of each chunk in the buffer
        self._in_slot = np.full(self._n_slots, -1, np.int64)
        self._last_used = np.zeros(self._n_slots, np.int64)
        self._clock = 0
        self._held = torch.empty((0, self.n_features))
        self._held_at = np.full(len(self), -1, np.int32)

    def __len__(self) -> int:
        return len(self._file_rows)

    def take(self, rows: Tensor) -> Tensor:
        """Return rows, from memory if they are there."""
        wanted = rows.cpu().numpy().ravel()
        held = self._held_at[wanted]
        are_held = len(held) and held.min() >= 0
        found = self._held[torch.from_numpy(held)] if are_held else self._through_buffer(wanted)
        return found.view(*rows.shape, self.n_features).to(self.device)

    def _through_buffer(self, wanted: Ints) -> Tensor:
        chunks = self._chunk[wanted]
        if (self._slot[chunks] < 0).any():
            needed = np.unique(chunks)
            if len(needed) > len(self._in_slot):  # rows from all over the file, not of a window
                return self._from_file(wanted)
            self._load(needed)
        slots = self._slot[chunks]
        self._clock += 1
        self._last_used[slots] = self._clock
        return self._buffer[torch.from_numpy(slots * CHUNK_ROWS + self._file_rows[wanted] % CHUNK_ROWS)]

    def _load(self, needed: Ints) -> None:
        """Load chunks into the buffer, replacing the least recently used ones."""
        missing = needed[self._slot[needed] < 0]
        stays = np.isin(self._in_slot, needed)
        order = np.argsort(np.where(stays, np.iinfo(np.int64).max, self._last_used), kind="stable")
        slots = order[: len(missing)]
        evicted = self._in_slot[slots]
        self._slot[evicted[evicted >= 0]] = -1
        self._slot[missing], self._in_slot[slots] = slots, missing
        for first in range(0, len(missing), READ_CHUNKS):
            starts = self._chunks[missing[first : first + READ_CHUNKS]] * CHUNK_ROWS
            ends = np.minimum(starts + CHUNK_ROWS, self._n_file_rows)
            found = self._read(np.concatenate([np.arange(*ends_of) for ends_of in zip(starts, ends, strict=True)]))
            parts = np.split(found, np.cumsum(ends - starts)[:-1])
            for slot, part in zip(slots[first:], parts, strict=False):
                self._buffer[slot * CHUNK_ROWS :][: len(part)] = torch.from_numpy(part)

    def _from_file(self, wanted: Ints) -> Tensor:
        order = np.argsort(self._file_rows[wanted], kind="stable")
        found = torch.empty((len(wanted), self.n_features))
        found[torch.from_numpy(order)] = torch.from_numpy(self._read(self._file_rows[wanted[order]]))
        return found

    def blocks(self, rows: Ints) -> Iterator[tuple[Ints, Tensor]]:
        """Yield blocks in the order of the file."""
        order = np.argsort(self._file_rows[rows], kind="stable")
        for first in range(0, len(rows), BLOCK_ROWS):
            places = order[first : first + BLOCK_ROWS]
            yield places, torch.from_numpy(self._read(self._file_rows[rows[places]])).to(self.device)

    def shuffled(self, rows: Ints, generator: torch.Generator, epoch: int) -> Ints:
        """Return an order with windows of chunks drawn by the epoch's number, and rows within each by the generator."""
        n_chunks = len(self._slot)
        window = np.empty(n_chunks, np.int32)
        window[np.random.default_rng(epoch).permutation(n_chunks)] = np.arange(n_chunks) // self._window_chunks
        order: Ints = torch.randperm(len(rows), generator=generator).numpy()
        return order[np.argsort(window[self._chunk[rows[order]]], kind="stable")]

    def hold(self, rows: Ints) -> None:
        """Keep rows in memory if they fit into half of the limit; otherwise each `take` reads them."""
        if len(rows) > self.most_held or (self._held_at[rows] >= 0).all():
            return
        self._held_at[:] = -1
        self._held = torch.empty((len(rows), self.n_features))
        for places, x in self.blocks(rows):
            self._held[torch.from_numpy(places)] = x.cpu()
        self._held_at[rows] = np.arange(len(rows))


class TransformedRows:
    """Other rows, transformed each time they are taken; see `hoarfrost.heads.layers.transformed`."""

    def __init__(self, x: Rows, transform: str) -> None:
        self.device, self.place, self.dtype = x.device, x.place, x.dtype
        self.n_features, self.most_held = x.n_features, x.most_held
        self.shuffled, self.hold, self.release = x.shuffled, x.hold, x.release
        self._x, self._transform = x, transform

    def __len__(self) -> int:
        return len(self._x)

    def take(self, rows: Tensor) -> Tensor:
        """Return rows, transformed."""
        return transformed(self._x.take(rows), self._transform)

    def blocks(self, rows: Ints) -> Iterator[tuple[Ints, Tensor]]:
        """Yield the blocks of the other rows, transformed."""
        for places, part in self._x.blocks(rows):
            yield places, transformed(part, self._transform)


def transformed_rows(x: Rows, transform: str) -> Rows:
    """Return rows after a transform: transformed once if they are in memory, and few enough for a copy."""
    if transform == "none":
        return x
    if isinstance(x, HeldRows) and x.x.device == x.device and x.x.numel() <= TRANSFORMED_NUMBERS:
        return HeldRows(transformed(x.x, transform))
    return TransformedRows(x, transform)


def fitted_standardise(x: Rows, rows: Ints, transform: str, columns: Columns = ()) -> Standardise:
    """Return the layer for the mean and deviation of a fold's training rows: other rows' figures would leak.

    `x` has the chosen columns, and is transformed already; the layer does both to the embeddings that a finished head takes.
    """
    mean, std = moments(x, rows)  # (D,) each
    # A feature that is constant here must not divide by zero, nor become huge in images where it varies.
    usable = std > NEARLY_CONSTANT * mean.abs() + 1e-12
    return Standardise(mean.to(x.dtype), torch.where(usable, std, 1.0).to(x.dtype), transform, columns)


def gathered(x: Rows, rows: Ints) -> npt.NDArray[np.float32]:
    """Return the embeddings (m, D) of some rows as one array."""
    found = np.empty((len(rows), x.n_features), np.float32)
    for places, part in x.blocks(rows):
        found[places] = part.cpu().numpy()
    return found


def moments(x: Rows, rows: Ints) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of some rows, (D,) float64 each, in one pass.

    References
    ----------
    Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance, The American Statistician 37(3).
    """
    n, mean, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for _, part in x.blocks(rows):
        variance, part_mean = torch.var_mean(part.double(), dim=0, correction=0)
        distance, total = part_mean - mean.to(part_mean), n + len(part)
        squares = squares.to(part_mean) + variance * len(part) + distance**2 * (n * len(part) / total)
        mean = mean.to(part_mean) + distance * (len(part) / total)
        n = total
    return mean, (squares / n).sqrt()
