"""Columns of texts stored as bytes and numbers: as Python objects, ten million rows would fill the memory.

Notes
-----
pyarrow 26 and polars 2.1 were tried on ten million paths of 40 bytes with labels, splits and patients, built, written to
HDF5, read back and looked up. They need up to 3.5 and 4.1 GB, and these columns 2.1 GB; an extraction's driver has 3 GB
for all it does. They rebuild their hash tables for each look-up, support names that are not UTF-8 only as bytes, and add
170 and 181 MB to an installation.
"""

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice
from typing import SupportsIndex, TypeVar, overload

import numpy as np
import numpy.typing as npt

from hoarfrost.features.columns.lookup import Hashes, Ints, Lookup

BLOCK_TEXTS = 1 << 12  # Python objects at a time: as many as the processor's cache holds
BLOCK_BYTES = 1 << 18  # searched at a time, for the same reason
MAX_SHARED = 1 << 16  # distinct texts kept as objects: a column of labels or scanners has fewer, one of paths has more
BLOCKS_SKIPPED = 16  # blocks not searched for equal texts after a block that had few
_LOWER = bytes(range(256)).lower()

Cell = TypeVar("Cell", str, bytes)


class Texts(Sequence[str]):
    """An immutable column of texts, which reads like a list.

    Equal texts may share their bytes, so that labels take four bytes per row. File names that are not UTF-8 keep their
    bytes, as with `os.fsdecode`.

    Parameters
    ----------
    codes : ndarray (n,) int32
        The number of each row's text among the stored ones.
    ends : ndarray (m + 1,) int64
        A text is `content` from `ends[code]` to `ends[code + 1]`.
    content : bytes
        The stored texts, one after another.
    """

    def __init__(self, codes: npt.NDArray[np.int32], ends: Ints, content: bytes) -> None:
        self._codes, self._ends, self._content = codes, ends, content

    @classmethod
    def of(cls, texts: "Iterable[str]") -> "Texts":
        """Return texts as a column; a column is returned unchanged."""
        if isinstance(texts, Texts):
            return texts
        builder, rest = TextsBuilder(), iter(texts)
        while some := list(islice(rest, BLOCK_TEXTS)):
            builder.add(some)
        return builder.built()

    @classmethod
    def repeated(cls, text: str, n: int) -> "Texts":
        """Return a column that has one text in each of `n` rows."""
        return cls.of([text]).take(np.zeros(n, np.int64))

    @classmethod
    def sparse(cls, n: int, texts: Mapping[int, str]) -> "Texts":
        """Return a column of `n` texts, which are empty except in the given rows."""
        stored = cls.of(["", *texts.values()])
        codes = np.zeros(n, np.int32)
        codes[list(texts)] = stored._codes[1:]
        return cls(codes, stored._ends, stored._content)

    @classmethod
    def joined(cls, columns: "Iterable[Texts]") -> "Texts":
        """Return the rows of all columns, one column after another."""
        codes, ends, content = [np.empty(0, np.int32)], [np.zeros(1, np.int64)], bytearray()
        n_stored = 0
        for column in columns:
            codes.append(column._codes + np.int32(n_stored))
            ends.append(column._ends[1:] + len(content))
            content += column._content
            n_stored += len(column._ends) - 1
        return cls(np.concatenate(codes), np.concatenate(ends), bytes(content))

    def __len__(self) -> int:
        return len(self._codes)

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Texts": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "str | Texts":
        if isinstance(index, slice):
            return Texts(self._codes[index], self._ends, self._content)
        code = int(self._codes[index])
        return self._stored(code) if self._shared is None else self._shared[code]

    def _stored(self, code: int) -> str:
        return self._content[self._ends[code] : self._ends[code + 1]].decode("utf-8", "surrogateescape")

    @cached_property
    def _shared(self) -> list[str] | None:
        """The stored texts as objects that rows share; None if there are too many."""
        if len(self._ends) > MAX_SHARED:
            return None
        return list(map(self._stored, range(len(self._ends) - 1)))

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks():
            if self._shared is None:
                yield from [text.decode("utf-8", "surrogateescape") for text in block.encoded()]
            else:
                yield from map(self._shared.__getitem__, block._codes.tolist())

    def _blocks(self) -> "Iterator[Texts]":
        """Return the rows in blocks, small enough for one object per row."""
        return (self[first : first + BLOCK_TEXTS] for first in range(0, len(self), BLOCK_TEXTS))

    def encoded(self) -> list[bytes]:
        """Return the bytes of all texts."""
        content = self._content
        bounds = zip(self._ends[self._codes].tolist(), self._ends[self._codes + 1].tolist(), strict=True)
        return [content[begin:end] for begin, end in bounds]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts | list | tuple):
            return len(self) == len(other) and all(map(operator.eq, self, other))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as a list has none

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3])) + (", …" if len(self) > 3 else "")
        return f"<{len(self):,} texts: {shown}>"

    @property
    def lengths(self) -> Ints:
        """The number of bytes of each text, (n,) int64."""
        return self._ends[self._codes + 1] - self._ends[self._codes]

    def rows_of_length(self, least: int, most: int | None = None) -> Ints:
        """Return the rows whose texts have `least` to `most` bytes, ascending."""
        lengths = np.diff(self._ends)
        return self._rows_of((lengths >= least) & (lengths <= (lengths if most is None else most)))

    def _rows_of(self, wanted: npt.NDArray[np.bool_]) -> Ints:
        """Return the rows of some of the stored texts."""
        return np.flatnonzero(wanted[self._codes]) if wanted.any() else np.empty(0, np.int64)

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> "Texts":
        """Return some rows, (m,) integers or (n,) bool, as a column that shares the bytes of this one."""
        return Texts(self._codes[rows], self._ends, self._content)

    def replaced(self, rows: Ints, texts: "Texts") -> "Texts":
        """Return a column with other texts in some rows, (m,) int64."""
        if not len(rows):
            return self
        places = np.arange(len(self))
        places[rows] = len(self) + np.arange(len(rows))
        return Texts.joined([self, texts]).take(places)

    def _of_codes(self, codes: Ints) -> "Texts":
        """Return some of the stored texts."""
        return Texts(codes.astype(np.int32), self._ends, self._content)

    def mapped(self, function: Callable[[str], str]) -> "Texts":
        """Return the function's result for each text. Texts that share their bytes need one call."""
        return Texts.of(map(function, self._of_codes(np.arange(len(self._ends) - 1)))).take(self._codes)

    def values(self) -> Iterator[str]:
        """Return each text that occurs, once for all rows that share its bytes."""
        occurs = np.zeros(len(self._ends) - 1, bool)
        occurs[self._codes] = True
        return iter(self._of_codes(np.flatnonzero(occurs)))

    def counts(self) -> Counter[str]:
        """Return how often each text occurs."""
        counts: Counter[str] = Counter()
        n_rows = np.bincount(self._codes, minlength=len(self._ends) - 1)
        occurring = np.flatnonzero(n_rows)
        for text, n in zip(self._of_codes(occurring), n_rows[occurring].tolist(), strict=True):
            counts[text] += n
        return counts

    def rows_with(self, letters: bytes, pairs: Iterable[bytes] = ()) -> Ints:
        """Return the rows that contain one of some bytes, or of some pairs of bytes, ascending.

        With pairs, a few rows too many: the last byte of a text and the first of the next one count as a pair.
        """
        wanted = bytes(byte in letters for byte in range(256))
        found = np.zeros(len(self._ends) - 1, bool)
        for first in range(0, len(self._content), BLOCK_BYTES):
            text = self._content[first : first + BLOCK_BYTES + 1]
            block, hits = np.frombuffer(text, np.uint8), np.frombuffer(bytearray(text.translate(wanted)), bool)
            for one, two in pairs:
                hits[:-1] |= (block[:-1] == one) & (block[1:] == two)
            found[np.searchsorted(self._ends, first + np.flatnonzero(hits), "right") - 1] = True
        return self._rows_of(found)

    def edges(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Return the first and the last byte of each text, (n,) uint8; 0 for empty texts."""
        starts, ends = self._ends[self._codes], self._ends[self._codes + 1]
        there = ends > starts
        first, last = np.zeros(len(self), np.uint8), np.zeros(len(self), np.uint8)
        content = np.frombuffer(self._content, np.uint8)
        first[there], last[there] = content[starts[there]], content[ends[there] - 1]
        return first, last

    def have_suffix(self, suffixes: Iterable[str]) -> npt.NDArray[np.bool_]:
        """Return which names have one of some suffixes (".png", at most seven letters), in either case, (n,) bool."""
        wanted = [suffix.encode("ascii").lower() for suffix in suffixes]
        content = np.frombuffer(self._content.ljust(8), np.uint8)
        window = np.lib.stride_tricks.sliding_window_view(content, 8)  # at every position, without a copy
        found = np.zeros(len(self), bool)
        for first in range(0, len(self), BLOCK_BYTES):
            some = self[first : first + BLOCK_BYTES]
            ends, lengths = some._ends[some._codes + 1], some.lengths
            tails = window[np.maximum(ends - 8, 0)].tobytes().translate(_LOWER)
            packed = np.frombuffer(tails, ">u8").astype(np.uint64) >> (8 * np.maximum(8 - ends, 0)).astype(np.uint64)
            for suffix in wanted:
                n_bits = np.uint64(8 * len(suffix))
                is_suffix = packed & ((np.uint64(1) << n_bits) - np.uint64(1)) == int.from_bytes(suffix, "big")
                before = packed >> n_bits & np.uint64(255)
                # A name with nothing before the dot has no suffix.
                found[first : first + len(some)] |= is_suffix & (lengths > len(suffix)) & (before != ord("/"))
        return found

    def hashes(self) -> Hashes:
        """Return a hash of each text, (n,) uint64; another one in each process."""
        return np.fromiter(map(hash, self._each_encoded()), np.int64, len(self)).view(np.uint64)

    def same(self, rows: Ints, other: "Texts", others: Ints) -> npt.NDArray[np.bool_]:
        """Return whether pairs of rows, in this and another column, have equal texts, (m,) bool."""
        pairs = self.take(rows)._each_encoded(), other.take(others)._each_encoded()
        return np.fromiter(map(operator.eq, *pairs), bool, len(rows))

    def _each_encoded(self) -> Iterator[bytes]:
        return chain.from_iterable(block.encoded() for block in self._blocks())


class TextsBuilder:
    """Builds a column from blocks of rows."""

    def __init__(self) -> None:
        self._codes: list[npt.NDArray[np.int32]] = []
        self._lengths: list[Ints] = []
        self._content = bytearray()
        self._n_stored = 0
        self._code: dict[str | bytes, int] = {}
        self._n_skipped = 0

    def add(self, texts: Sequence[str]) -> None:
        """Add rows."""
        self._add(texts, lambda new: [text.encode("utf-8", "surrogateescape") for text in new])

    def add_encoded(self, texts: Sequence[bytes]) -> None:
        """Add rows in UTF-8."""
        self._add(texts, lambda new: new)

    def _add(self, texts: Sequence[Cell], encode: Callable[[Sequence[Cell]], Sequence[bytes]]) -> None:
        self._n_skipped -= 1
        distinct = dict.fromkeys(texts if self._n_skipped <= 0 else ())
        if self._n_skipped > 0 or 2 * len(distinct) > len(texts):  # most differ, as paths do
            if self._n_skipped <= 0:
                self._n_skipped = BLOCKS_SKIPPED
            self._codes.append(np.arange(self._n_stored, self._n_stored + len(texts), dtype=np.int32))
            self._store(encode(texts))
            return
        new = [text for text in distinct if text not in self._code]
        if len(self._code) + len(new) > MAX_SHARED:
            self._code, new = {}, list(distinct)
        self._code.update(zip(new, range(self._n_stored, self._n_stored + len(new)), strict=True))
        self._store(encode(new))
        self._codes.append(np.fromiter(map(self._code.__getitem__, texts), np.int32, len(texts)))

    def _store(self, texts: Sequence[bytes]) -> None:
        self._lengths.append(np.fromiter(map(len, texts), np.int64, len(texts)))
        self._content += b"".join(texts)
        self._n_stored += len(texts)

    def built(self) -> Texts:
        """Return the column."""
        lengths = np.concatenate([np.zeros(1, np.int64), *self._lengths])
        codes = np.concatenate([np.empty(0, np.int32), *self._codes])
        # As bytes, because a bytearray that grew takes more memory than it needs.
        return Texts(codes, np.cumsum(lengths, out=lengths), bytes(self._content))


def lists_to_texts(table: object) -> None:
    """Replace lists in the fields and mappings of a frozen dataclass by `Texts`."""
    for name, column in vars(table).items():
        if isinstance(column, list):
            object.__setattr__(table, name, Texts.of(column))
        elif isinstance(column, Mapping):
            object.__setattr__(table, name, {key: Texts.of(cells) for key, cells in column.items()})


class TextIndex:
    """An index of a column's rows by text. If a text occurs twice, its first row counts."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._lookup = Lookup(texts.hashes())

    def find(self, texts: Texts) -> Ints:
        """Return the row of each text, (m,) int64; -1 for texts that do not occur."""
        return self._lookup.find(texts.hashes(), lambda there, here: self._texts.same(there, texts, here))

    def firsts(self) -> Ints:
        """Return for each row the first row of the same text, (n,) int64."""
        return self._lookup.firsts(lambda there, here: self._texts.same(there, self._texts, here))
