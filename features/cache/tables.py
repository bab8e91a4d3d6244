"""Reading datasets' tables, column by column."""

from collections.abc import Iterable, Iterator

import h5py
import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache.layout import CHUNK_ROWS, MAX_CELL_BYTES, SECONDS, DatasetTable, FileTable, Rows
from hoarfrost.features.cache.opened import OpenedFile
from hoarfrost.features.columns.texts import Texts, TextsBuilder


class StoredTables:
    """The tables in a file with `n_images` images, in its group "datasets" or "pending". Damage raises DamagedCacheError."""

    def __init__(self, file: OpenedFile, n_images: int) -> None:
        self._file = file
        self._n_images = n_images

    def names(self, group: str = "datasets") -> list[str]:
        """Return the tables' names, sorted."""
        with self._file.reading(f"/{group}"):
            return sorted(self._file.child(self._file.root, group, h5py.Group))

    def read(self, name: str, group: str = "datasets") -> DatasetTable:
        """Read a whole table."""
        with self._file.reading(f"the dataset {name!r}"):
            stored = self._stored(name, group)
            attributes = self._file.child(stored, "attributes", h5py.Group)
            table = DatasetTable(
                name=name,
                source=self._file.text(stored, "source"),
                root=self._file.text(stored, "root"),
                created=self._file.text(stored, "created"),
                seconds_per_image=float(self._file.text(stored, SECONDS)) if SECONDS in stored.attrs else 0.0,
                paths=self._column(stored, "path"),
                rows=self._rows(stored, name),
                labels=self._column(stored, "label"),
                errors=self._column(stored, "error"),
                sizes=self._numbers(stored, "size"),
                mtimes_ns=self._numbers(stored, "mtime_ns"),
                splits=self._column(stored, "split") if "split" in stored else None,
                patients=self._column(stored, "patient") if "patient" in stored else None,
                attributes={column: self._column(attributes, column) for column in attributes},
            )
            texts = [*table.texts().values(), *table.attributes.values()]
            self._check_lengths(name, [*map(len, table.numbers().values()), *map(len, texts)])
            return table

    def files(self, name: str, group: str) -> tuple[str, FileTable]:
        """Read a table's `root`, and what is recorded of its readable files.

        The other columns are only checked: a table that is damaged anywhere is not trusted.
        """
        with self._file.reading(f"the dataset {name!r}"):
            stored = self._stored(name, group)
            rows, paths = self._rows(stored, name), self._column(stored, "path")
            sizes, mtimes_ns = self._numbers(stored, "size"), self._numbers(stored, "mtime_ns")
            others = [(stored, column) for column in ("label", "error", "split", "patient") if column in stored]
            attributes = self._file.child(stored, "attributes", h5py.Group)
            others += [(attributes, column) for column in attributes]
            lengths = [sum(map(len, self._cells(*other))) for other in others]
            self._check_lengths(name, [len(rows), len(sizes), len(mtimes_ns), len(paths), *lengths])
            table = FileTable(paths, sizes, mtimes_ns, rows)
            embedded = rows >= 0
            if not embedded.all():
                table = FileTable(paths.take(embedded), sizes[embedded], mtimes_ns[embedded], rows[embedded])
            return self._file.text(stored, "root"), table

    def _stored(self, name: str, group: str) -> h5py.Group:
        return self._file.child(self._file.child(self._file.root, group, h5py.Group), name, h5py.Group)

    def _check_lengths(self, name: str, lengths: Iterable[int]) -> None:
        if len(set(lengths)) > 1:
            raise self._file.damaged(f"the columns of the dataset {name!r} differ in length")

    def _rows(self, group: h5py.Group, name: str) -> Rows:
        rows = self._numbers(group, "row")
        if len(rows) and not (rows.min() >= -1 and rows.max() < self._n_images):
            raise self._file.damaged(f"the dataset {name!r} points to embeddings that are not there")
        return rows

    def _numbers(self, group: h5py.Group, name: str) -> Rows:
        data = self._file.dataset(group, name)
        if data.dtype != np.int64 or data.ndim != 1:
            raise self._file.damaged(f"{data.name} is not a column of whole numbers")
        return np.asarray(data[...], np.int64)

    def _column(self, group: h5py.Group, name: str) -> Texts:
        texts = TextsBuilder()
        for cells in self._cells(group, name):
            texts.add_encoded(cells.tolist())
        return texts.built()

    def _cells(self, group: h5py.Group, name: str) -> Iterator[npt.NDArray[np.bytes_]]:
        """Yield a column of texts, some rows at a time."""
        data = self._file.dataset(group, name)
        if data.dtype.kind != "S" or data.ndim != 1 or data.dtype.itemsize > MAX_CELL_BYTES:
            raise self._file.damaged(f"{data.name} is not a column of texts")
        step = max(CHUNK_ROWS, data.chunks[0])
        for first in range(0, len(data), step):
            yield data[first : first + step]
