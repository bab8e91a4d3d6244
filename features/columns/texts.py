"""Columns of texts kept as bytes and numbers: with an object for each, ten million rows would fill the memory."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Self, SupportsIndex, TypeVar, overload

import numpy as np
import numpy.typing as npt

from hoarfrost.features.columns.lookup import Heads, Ints, Lookup

BLOCK_TEXTS = 1 << 15  # made into objects, and let go, at a time
BLOCK_LETTERS = 1 << 18  # looked through at a time: as much as the processor's cache holds
BLOCK_BYTES = 1 << 24  # compared or hashed at a time
MOST_REMEMBERED = 1 << 16  # different texts that are kept as objects: labels and scanners are that few, paths are not
BLOCKS_UNLIKE = 16  # that are not looked through for equal texts after one that had few
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_LOWER = bytes(range(256)).lower()

Cell = TypeVar("Cell", str, bytes)


class Texts(Sequence[str]):
    """A column of texts that reads like a list of them and never changes.

    Equal texts may share their bytes, so that labels cost four bytes a row. Names of files that are not UTF-8 keep their
    bytes, as `os.fsdecode` has it.

    Parameters
    ----------
    codes : ndarray (n,) int32
        Which of the kept texts each row is.
    ends : ndarray (m + 1,) int64
        Where in `content` they lie: from `ends[code]` to `ends[code + 1]`.
    content : bytes
    """

    def __init__(self, codes: npt.NDArray[np.int32], ends: Ints, content: bytes) -> None:
        self._codes, self._ends, self._content = codes, ends, content

    @classmethod
    def of(cls, texts: "Iterable[str]") -> "Texts":
        """Make a column; one that is one already stays the same."""
        if isinstance(texts, Texts):
            return texts
        builder, rest = TextsBuilder(), iter(texts)
        while some := list(islice(rest, BLOCK_TEXTS)):
            builder.add(some)
        return builder.built()

    @classmethod
    def repeated(cls, text: str, n: int) -> "Texts":
        """Make a column of one text."""
        return cls.of([text]).take(np.zeros(n, np.int64))

    @classmethod
    def sparse(cls, n: int, texts: Mapping[int, str]) -> "Texts":
        """Make a column that is empty but for some rows."""
        kept = cls.of(["", *texts.values()])
        codes = np.zeros(n, np.int32)
        codes[list(texts)] = kept._codes[1:]
        return cls(codes, kept._ends, kept._content)

    @classmethod
    def joined(cls, columns: "Iterable[Texts]") -> "Texts":
        """Put columns one after another into one."""
        codes, ends, content = [np.empty(0, np.int32)], [np.zeros(1, np.int64)], bytearray()
        n_kept = 0
        for column in columns:
            codes.append(column._codes + np.int32(n_kept))
            ends.append(column._ends[1:] + len(content))
            content += column._content
            n_kept += len(column._ends) - 1
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
        return self._kept(code) if self._remembered is None else self._remembered[code]

    def _kept(self, code: int) -> str:
        return self._content[self._ends[code] : self._ends[code + 1]].decode("utf-8", "surrogateescape")

    @cached_property
    def _remembered(self) -> list[str] | None:
        """All texts as objects, where they are few: rows share them then."""
        if len(self._ends) > MOST_REMEMBERED:
            return None
        return [self._kept(code) for code in range(len(self._ends) - 1)]

    def __iter__(self) -> Iterator[str]:
        content = self._content
        for first in range(0, len(self), BLOCK_TEXTS):
            codes = self._codes[first : first + BLOCK_TEXTS]
            if self._remembered is not None:
                yield from map(self._remembered.__getitem__, codes.tolist())
                continue
            bounds = zip(self._ends[codes].tolist(), self._ends[codes + 1].tolist(), strict=True)
            yield from [content[begin:end].decode("utf-8", "surrogateescape") for begin, end in bounds]

    def encoded(self, start: int, stop: int) -> list[bytes]:
        """Give the bytes of some rows' texts."""
        codes, content = self._codes[start:stop], self._content
        bounds = zip(self._ends[codes].tolist(), self._ends[codes + 1].tolist(), strict=True)
        return [content[begin:end] for begin, end in bounds]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts):
            everywhere = np.arange(len(self))
            return len(self) == len(other) and bool(self.same(everywhere, other, everywhere).all())
        if isinstance(other, list | tuple):
            return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as a list has none

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3])) + (", …" if len(self) > 3 else "")
        return f"<{len(self):,} texts: {shown}>"

    @property
    def lengths(self) -> Ints:
        """How many bytes each text has, (n,) int64."""
        return self._ends[self._codes + 1] - self._ends[self._codes]

    def rows_of_length(self, least: int, most: int | None = None) -> Ints:
        """Give the rows whose texts have at least so many bytes, and at most, ascending."""
        lengths = np.diff(self._ends)
        return self._rows_of((lengths >= least) & (lengths <= (lengths if most is None else most)))

    def _rows_of(self, kept: npt.NDArray[np.bool_]) -> Ints:
        """Give the rows of some of the kept texts."""
        return np.flatnonzero(kept[self._codes]) if kept.any() else np.empty(0, np.int64)

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> "Texts":
        """Give some rows, (m,) integers or (n,) bool, as a column; the texts' bytes are shared."""
        return Texts(self._codes[rows], self._ends, self._content)

    def replaced(self, rows: Ints, texts: "Texts") -> "Texts":
        """Put other texts in the place of some rows', (m,) int64."""
        if not len(rows):
            return self
        places = np.arange(len(self))
        places[rows] = len(self) + np.arange(len(rows))
        return Texts.joined([self, texts]).take(places)

    def mapped(self, function: Callable[[str], str]) -> "Texts":
        """Give what a function makes of each text; it is called once for those that share their bytes."""
        kept = Texts(np.arange(len(self._ends) - 1, dtype=np.int32), self._ends, self._content)
        return Texts.of(map(function, kept)).take(self._codes)

    def values(self) -> Iterator[str]:
        """Give each text that occurs at least once: as often as it is kept, not as often as it stands there."""
        occurs = np.zeros(len(self._ends) - 1, bool)
        occurs[self._codes] = True
        yield from Texts(np.flatnonzero(occurs).astype(np.int32), self._ends, self._content)

    def counts(self) -> Counter[str]:
        """Count how often each text stands there."""
        counts: Counter[str] = Counter()
        of_kept = np.bincount(self._codes, minlength=len(self._ends) - 1)
        kept = np.flatnonzero(of_kept)
        texts = Texts(kept.astype(np.int32), self._ends, self._content)
        for text, n in zip(texts, of_kept[kept].tolist(), strict=True):
            counts[text] += n
        return counts

    def rows_with(self, letters: bytes, pairs: Iterable[bytes] = ()) -> Ints:
        """Give the rows that hold one of some bytes, or of some pairs of bytes, ascending.

        A pair may also be the last byte of one text and the first of the next: whoever asks for pairs looks again.
        """
        wanted = bytes(byte in letters for byte in range(256))
        found = np.zeros(len(self._ends) - 1, bool)
        for first in range(0, len(self._content), BLOCK_LETTERS):
            text = self._content[first : first + BLOCK_LETTERS + 1]
            block, hits = np.frombuffer(text, np.uint8), np.frombuffer(bytearray(text.translate(wanted)), bool)
            for one, two in pairs:
                hits[:-1] |= (block[:-1] == one) & (block[1:] == two)
            found[np.searchsorted(self._ends, first + np.flatnonzero(hits), "right") - 1] = True
        return self._rows_of(found)

    def edges(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Give each text's first and last byte, (n,) uint8; 0 for empty ones."""
        starts, ends = self._ends[self._codes], self._ends[self._codes + 1]
        there = ends > starts
        first, last = np.zeros(len(self), np.uint8), np.zeros(len(self), np.uint8)
        first[there], last[there] = self._bytes[starts[there]], self._bytes[ends[there] - 1]
        return first, last

    def have_suffix(self, suffixes: Iterable[str]) -> npt.NDArray[np.bool_]:
        """Tell which names have one of some suffixes (".png", at most seven letters), in either case, (n,) bool."""
        wanted = [suffix.encode("ascii").lower() for suffix in suffixes]
        content = self._bytes if len(self._content) >= 8 else np.frombuffer(self._content.ljust(8), np.uint8)
        window = np.lib.stride_tricks.sliding_window_view(content, 8)  # every place, nothing copied
        found = np.zeros(len(self), bool)
        for first in range(0, len(self), BLOCK_BYTES // 64):
            codes = self._codes[first : first + BLOCK_BYTES // 64]
            ends = self._ends[codes + 1]
            lengths = np.minimum(ends - self._ends[codes], 8).astype(np.uint64)
            tails = window[np.maximum(ends - 8, 0)].tobytes().translate(_LOWER)
            packed = np.frombuffer(tails, ">u8").astype(np.uint64) >> (8 * np.maximum(8 - ends, 0)).astype(np.uint64)
            packed &= np.where(lengths < 8, (np.uint64(1) << 8 * (lengths % 8)) - np.uint64(1), ~np.uint64(0))
            for suffix in wanted:
                n_bits = 8 * len(suffix)
                before = packed >> np.uint64(n_bits) & np.uint64(
                    255
                )  # a name with nothing before the dot has no suffix
                is_suffix = packed & np.uint64((1 << n_bits) - 1) == np.uint64(int.from_bytes(suffix, "big"))
                found[first : first + len(codes)] |= is_suffix & (before != 0) & (before != ord("/"))
        return found

    # -- comparing without an object for each -----------------------------------------------------------------------

    @property
    def _bytes(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self._content, np.uint8)

    def hashes(self) -> Heads:
        """Give a number for each text, (n,) uint64: equal for equal ones, and seldom for others."""
        hashes = np.empty(len(self), np.uint64)
        for length, rows in _by_length(self.lengths):
            found = np.full(len(rows), length + 1, np.uint64) * _PRIME
            for words in self._words(self._ends[self._codes[rows]], length).T:
                found = (found ^ words) * _PRIME
                found ^= found >> np.uint64(29)
            hashes[rows] = found * _PRIME
        return hashes

    def same(self, rows: Ints, other: "Texts", others: Ints) -> npt.NDArray[np.bool_]:
        """Tell of pairs of rows, here and in another column, whether their texts are equal."""
        here, there = self._codes[rows], other._codes[others]
        lengths = self._ends[here + 1] - self._ends[here]
        same = np.asarray(lengths == other._ends[there + 1] - other._ends[there])
        alike = np.flatnonzero(same)
        for length, places in _by_length(lengths[alike]):
            pairs = alike[places]
            mine, theirs = self._words(self._ends[here[pairs]], length), other._words(other._ends[there[pairs]], length)
            same[pairs] = (mine == theirs).all(axis=1)
        return same

    def _words(self, starts: Ints, length: int) -> npt.NDArray[np.uint64]:
        """Give texts of one length as rows of numbers, eight bytes each, the last filled up with zeros."""
        padded = np.zeros((len(starts), -(-length // 8) * 8), np.uint8)
        if length:
            window = np.lib.stride_tricks.sliding_window_view(self._bytes, length)  # every place, nothing copied
            padded[:, :length] = window[starts]
        return padded.view(np.uint64)


def _by_length(lengths: Ints) -> Iterator[tuple[int, Ints]]:
    """Give the places of equal lengths together, no more at once than memory should hold."""
    for first in range(0, len(lengths), BLOCK_BYTES // 64):
        part = lengths[first : first + BLOCK_BYTES // 64]
        order = np.argsort(part, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            length = int(part[places[0]])
            step = max(1, BLOCK_BYTES // max(1, length))
            for start in range(0, len(places), step):
                yield length, first + places[start : start + step]


class TextsBuilder:
    """Makes a column of what is added block by block."""

    def __init__(self) -> None:
        self._codes: list[npt.NDArray[np.int32]] = []
        self._lengths: list[Ints] = []
        self._content = bytearray()
        self._n_kept = 0
        self._code: dict[str | bytes, int] = {}
        self._n_unlike = 0

    def add(self, texts: Sequence[str]) -> Self:
        """Add rows."""
        return self._add(texts, lambda new: [text.encode("utf-8", "surrogateescape") for text in new])

    def add_encoded(self, texts: Sequence[bytes]) -> Self:
        """Add rows given as bytes."""
        return self._add(texts, lambda new: new)

    def _add(self, texts: Sequence[Cell], encode: Callable[[Sequence[Cell]], Sequence[bytes]]) -> Self:
        self._n_unlike -= 1
        distinct = dict.fromkeys(texts if self._n_unlike <= 0 else ())
        if self._n_unlike > 0 or 2 * len(distinct) > len(texts):  # as paths are: nothing would be saved
            if self._n_unlike <= 0:
                self._n_unlike = BLOCKS_UNLIKE
            self._codes.append(np.arange(self._n_kept, self._n_kept + len(texts), dtype=np.int32))
            self._keep(encode(texts))
            return self
        new = [text for text in distinct if text not in self._code]
        if len(self._code) + len(new) > MOST_REMEMBERED:
            self._code, new = {}, list(distinct)
        self._code.update(zip(new, range(self._n_kept, self._n_kept + len(new)), strict=True))
        self._keep(encode(new))
        self._codes.append(np.fromiter(map(self._code.__getitem__, texts), np.int32, len(texts)))
        return self

    def _keep(self, texts: Sequence[bytes]) -> None:
        self._lengths.append(np.fromiter(map(len, texts), np.int64, len(texts)))
        self._content += b"".join(texts)
        self._n_kept += len(texts)

    def built(self) -> Texts:
        """Give the column."""
        lengths = np.concatenate([np.zeros(1, np.int64), *self._lengths])
        codes = np.concatenate([np.empty(0, np.int32), *self._codes])
        return Texts(
            codes, np.cumsum(lengths, out=lengths), bytes(self._content)
        )  # to the byte: what grows has room to


def keep_as_texts(table: object) -> None:
    """Turn the columns of a frozen dataclass that were given as lists into `Texts`, those in a mapping too."""
    for name, column in vars(table).items():
        if isinstance(column, list):
            object.__setattr__(table, name, Texts.of(column))
        elif isinstance(column, Mapping):
            object.__setattr__(table, name, {key: Texts.of(cells) for key, cells in column.items()})


class TextIndex:
    """Where each text stands in a column; the first place counts where it stands twice."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._lookup = Lookup(texts.hashes())

    def find(self, texts: Texts) -> Ints:
        """Give the row of each text, (m,) int64; -1 for texts that are not there."""
        return self._lookup.find(texts.hashes(), lambda there, here: self._texts.same(there, texts, here))

    def firsts(self) -> Ints:
        """Give for each row the first one of the same text, (n,) int64."""
        return self._lookup.firsts(lambda there, here: self._texts.same(there, self._texts, here))
