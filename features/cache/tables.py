"""Reading datasets' tables, column by column."""

from collections.abc import Iterator

import h5py
import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache.layout import CHUNK_ROWS, MAX_CELL_BYTES, DatasetTable, FileTable, Rows
from hoarfrost.features.cache.opened import OpenedFile
from hoarfrost.features.columns.texts import Texts, TextsBuilder


class StoredTables:
    """The tables in a file whose images are `n_images`; `members` are its "datasets", or what is "pending".

    Raises
    ------
    CacheError
        On reading: a table is damaged, or points to embeddings that are not there.
    """

    def __init__(self, file: OpenedFile, n_images: int) -> None:
        self._file = file
        self._n_images = n_images

    def names(self, members: str) -> list[str]:
        """Return the tables' names, sorted."""
        with self._file.reading(f"/{members}"):
            return sorted(self._file.child(self._file.root, members, h5py.Group))

    def table(self, name: str, members: str) -> DatasetTable:
        """Read one whole."""
        with self._file.reading(f"the dataset {name!r}"):
            group = self._group(name, members)
            attributes = self._file.child(group, "attributes", h5py.Group)
            table = DatasetTable(
                name=name,
                source=self._file.text(group, "source"),
                root=self._file.text(group, "root"),
                created=self._file.text(group, "created"),
                paths=self._column(group, "path"),
                rows=self._rows(group, name),
                labels=self._column(group, "label"),
                errors=self._column(group, "error"),
                sizes=self._numbers(group, "size"),
                mtimes_ns=self._numbers(group, "mtime_ns"),
                splits=self._column(group, "split") if "split" in group else None,
                patients=self._column(group, "patient") if "patient" in group else None,
                attributes={column: self._column(attributes, column) for column in attributes},
            )
            self._check_lengths(
                name, len(table.rows), len(table.sizes), len(table.mtimes_ns), *map(len, table.columns())
            )
            return table

    def files(self, name: str, members: str) -> tuple[str, FileTable]:
        """Read what tells unchanged files, and where they were; unreadable ones are left out.

        The other columns are only looked through: a table that is damaged anywhere is not believed.
        """
        with self._file.reading(f"the dataset {name!r}"):
            group = self._group(name, members)
            rows, sizes, mtimes = (
                self._rows(group, name),
                self._numbers(group, "size"),
                self._numbers(group, "mtime_ns"),
            )
            paths = self._column(group, "path")
            others = [(group, column) for column in ("label", "error", "split", "patient") if column in group]
            attributes = self._file.child(group, "attributes", h5py.Group)
            others += [(attributes, column) for column in attributes]
            lengths = [sum(map(len, self._cells(*other))) for other in others]
            self._check_lengths(name, len(rows), len(sizes), len(mtimes), len(paths), *lengths)
            table = FileTable(paths, sizes, mtimes, rows)
            embedded = rows >= 0
            if not embedded.all():
                table = FileTable(paths.take(embedded), sizes[embedded], mtimes[embedded], rows[embedded])
            return self._file.text(group, "root"), table

    def _group(self, name: str, members: str) -> h5py.Group:
        return self._file.child(self._file.child(self._file.root, members, h5py.Group), name, h5py.Group)

    def _check_lengths(self, name: str, *lengths: int) -> None:
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
        """Yield a column of texts some rows at a time."""
        data = self._file.dataset(group, name)
        if data.dtype.kind != "S" or data.ndim != 1 or data.dtype.itemsize > MAX_CELL_BYTES:
            raise self._file.damaged(f"{data.name} is not a column of texts")
        step = max(CHUNK_ROWS, data.chunks[0])
        for first in range(0, len(data), step):
            yield data[first : first + step]
