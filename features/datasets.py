"""Where images come from: an image folder, a CSV or a MedMNIST npz becomes one table of images."""

import csv
import os
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from features.errors import DatasetError, ImageDecodeError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Content = bytes | npt.NDArray[np.uint8]
    """Encoded bytes of a file, or the pixels of an npz row, (H, W) or (H, W, 3)."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"})
MANIFEST_NAME = "labels.csv"
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
IGNORED_FOLDERS = frozenset({"__MACOSX"})


@dataclass(frozen=True)
class FileStamp:
    """Size in bytes and modification time in ns: while both stay, a file is taken as unchanged."""

    size: int
    mtime_ns: int


class ImageSource(Protocol):
    """Where the images' contents are, by their place in the data set."""

    def stamp(self, index: int) -> FileStamp:
        """Give size and mtime of the file that holds the image; OSError where there is none."""

    def contents(self, indices: Sequence[int]) -> "Iterator[tuple[int, Callable[[], Content]]]":
        """Give for each wanted image, in order, a function that reads it (called in a worker thread)."""


@dataclass(frozen=True)
class Dataset:
    """A named table of images; all columns have one entry an image.

    `splits` and `patients` are None where the source does not tell them; `attributes` are
    further columns (scanner, site, sex). `source` is the path as the user gave it.
    """

    name: str
    source: str
    paths: list[str]
    labels: list[str]
    splits: list[str] | None
    patients: list[str] | None
    images: ImageSource
    attributes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that occur, sorted."""
        return tuple(sorted(set(self.labels)))

    def __len__(self) -> int:
        return len(self.paths)


def read_dataset(data: Path, *, name: str | None = None) -> Dataset:
    """Read the table of images that a path stands for; no image is opened.

    Parameters
    ----------
    data : Path
        A folder (`train/val/test` with class folders, class folders alone, or with a `labels.csv`),
        a CSV file (`path,label[,split][,patient][,attributes…]`) or an npz file in MedMNIST's layout.
    name : str, optional
        The data set's name in the cache; by default that of the folder or file.

    Raises
    ------
    DatasetError
        If there is nothing to read, or what there is contradicts itself.
    """
    if not data.exists():
        raise DatasetError(f"{data}: no such file or folder. Give a folder of images, a CSV or an npz file.")
    name = _checked_name(name if name is not None else _default_name(data))
    if data.is_dir():
        manifest = data / MANIFEST_NAME
        dataset = _read_manifest(manifest, name, str(data)) if manifest.is_file() else _read_folder(data, name)
    elif data.suffix.lower() == ".npz":
        dataset = _read_npz(data, name)
    elif data.suffix.lower() in {".csv", ".tsv"}:
        dataset = _read_manifest(data, name, str(data))
    else:
        raise DatasetError(
            f"{data}: neither a folder nor a CSV or npz file. Give the folder that holds the images, "
            "or a CSV with the columns path,label."
        )
    _check_classes(dataset)
    return dataset


def _default_name(data: Path) -> str:
    """Name a data set by its folder or file; `labels.csv` says nothing, its folder does."""
    resolved = data.resolve()
    if resolved.is_dir():
        return resolved.name or "dataset"
    return resolved.parent.name if resolved.name == MANIFEST_NAME and resolved.parent.name else resolved.stem


def _checked_name(name: str) -> str:
    # The name becomes an HDF5 group: "/" would nest it and "." means the group itself.
    if not name or "/" in name or name in {".", ".."} or not name.isprintable():
        raise DatasetError(
            f"{name!r} cannot name a data set (empty, '/', '.' or control characters). Pass --name NAME."
        )
    return name


def _check_classes(dataset: Dataset) -> None:
    if not len(dataset):
        raise DatasetError(f"{dataset.source}: no images listed. Check that this is the right path.")
    if len(dataset.classes) < 2:
        raise DatasetError(
            f"{dataset.source}: all {len(dataset)} images have one class ({dataset.classes[0]!r}); a classifier needs "
            "at least two. Give the folder above the class folders, or a CSV with both labels."
        )


# -- image folders ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileImages:
    """Images that are one file each, in a folder."""

    root: str
    paths: list[str]

    def stamp(self, index: int) -> FileStamp:
        """Give the file's size and mtime."""
        status = os.stat(os.path.join(self.root, self.paths[index]))
        return FileStamp(status.st_size, status.st_mtime_ns)

    def contents(self, indices: Sequence[int]) -> "Iterator[tuple[int, Callable[[], Content]]]":
        """Give a reader for each file."""
        for index in indices:
            yield index, partial(_read_file, os.path.join(self.root, self.paths[index]))


def _read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ImageDecodeError(error.strerror or str(error)) from error


def _read_folder(root: Path, name: str) -> Dataset:
    folders = [entry for entry in _listing(root) if entry.is_dir()]
    known = {entry.name: SPLIT_NAMES[entry.name.lower()] for entry in folders if entry.name.lower() in SPLIT_NAMES}
    if "train" in known.values() and len(set(known.values())) > 1:
        return _read_split_folders(root, name, folders, known)
    paths, labels = _read_class_folders(root, "")
    if not paths:
        raise _no_images(root)
    return Dataset(name, str(root), paths, labels, None, None, FileImages(str(root), paths))


def _read_split_folders(root: Path, name: str, folders: "list[os.DirEntry[str]]", known: dict[str, str]) -> Dataset:
    others = [entry.name for entry in folders if entry.name not in known]
    if others:
        raise DatasetError(
            f"{root}: the folder {others[0]!r} lies beside {', '.join(sorted(known))}, and it is unclear whether it is a "
            "split or a class. Move it away, or describe the images in a CSV."
        )
    if len(set(known.values())) < len(known):
        raise DatasetError(f"{root}: two folders name the same split ({', '.join(sorted(known))}). Merge them.")
    paths, labels, splits = [], [], []
    for folder in sorted(known, key=lambda folder: list(SPLIT_NAMES).index(folder.lower())):
        found, classes = _read_class_folders(root / folder, f"{folder}/")
        paths += found
        labels += classes
        splits += [known[folder]] * len(found)
    if not paths:
        raise _no_images(root)
    return Dataset(name, str(root), paths, labels, splits, None, FileImages(str(root), paths))


def _no_images(root: Path) -> DatasetError:
    return DatasetError(
        f"{root}: no images found in class folders (files ending in {', '.join(sorted(IMAGE_SUFFIXES))}). "
        "Expected ROOT/CLASS/image.png or ROOT/train/CLASS/image.png, or a CSV that names the images."
    )


def _read_class_folders(root: Path, prefix: str) -> tuple[list[str], list[str]]:
    """List the images below each class folder: paths relative to the data set's root, and labels."""
    paths, labels, loose = [], [], []
    for entry in _listing(root):
        if entry.is_dir():
            found = list(_walk(Path(entry.path), f"{prefix}{entry.name}/", seen=set()))
            paths += found
            labels += [entry.name] * len(found)
        elif _is_image_name(entry.name):
            loose.append(entry.name)
    if loose:
        raise DatasetError(
            f"{root}: {len(loose)} images lie outside any class folder (first: {loose[0]}), so their class is unknown. "
            "Move them into a folder named by their class, or describe the images in a CSV with path,label."
        )
    return paths, labels


def _walk(folder: Path, prefix: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """List images recursively, in name order; links to folders are followed, each folder once."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:  # a link that leads back up would never end
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in _listing(folder):
        if entry.is_dir() and not _is_image_name(entry.name):
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", seen)
        elif _is_image_name(entry.name):
            yield prefix + entry.name


def _listing(folder: Path) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as entries:
            visible = [e for e in entries if not e.name.startswith(".") and e.name not in IGNORED_FOLDERS]
    except OSError as error:
        raise DatasetError(f"{folder}: the folder cannot be listed: {error.strerror}.") from error
    return sorted(visible, key=lambda entry: entry.name)


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


# -- CSV manifests ----------------------------------------------------------------------------------------------------


def _read_manifest(path: Path, name: str, source: str) -> Dataset:
    columns, lines = _read_csv(path)
    for wanted in ("path", "label"):
        if wanted not in columns:
            raise DatasetError(
                f"{path}: the column {wanted!r} is missing; the header has {', '.join(columns) or 'no columns'}. "
                "Needed: path,label; known besides: split,patient; others become attributes."
            )
    root = path.parent
    paths = _manifest_paths(path, root, columns.pop("path"), lines)
    labels = _filled(path, "label", columns.pop("label"), lines)
    splits = _manifest_splits(path, columns.pop("split"), lines) if "split" in columns else None
    patients = _filled(path, "patient", columns.pop("patient"), lines) if "patient" in columns else None
    return Dataset(name, source, paths, labels, splits, patients, FileImages(str(root), paths), columns)


def _read_csv(path: Path) -> tuple[dict[str, list[str]], list[int]]:
    """Read a CSV's columns (names in lower case) and each row's line number."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # "-sig": Excel writes a byte order mark
            header_line = file.readline()
            file.seek(0)
            # Excel writes ";" where the comma is the decimal sign; the header tells.
            delimiter = max(",;\t", key=header_line.count)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [column.strip().lower() for column in next(reader, [])]
            rows, lines = [], []
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) != len(header):
                    raise DatasetError(
                        f"{path} line {reader.line_num}: {len(row)} fields, the header has {len(header)}."
                    )
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text ({error.reason}). Save it as 'CSV UTF-8'.") from error
    except csv.Error as error:
        raise DatasetError(f"{path} line {reader.line_num}: not a well-formed CSV: {error}.") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}.") from error
    _check_header(path, header)
    return {column: [row[i] for row in rows] for i, column in enumerate(header)}, lines


def _check_header(path: Path, header: list[str]) -> None:
    twice = [column for column, count in Counter(header).items() if count > 1]
    if twice:
        raise DatasetError(f"{path}: two columns have the name {twice[0]!r}. Rename one.")


def _manifest_paths(manifest: Path, root: Path, cells: list[str], lines: list[int]) -> list[str]:
    paths = [_inside(manifest, root, cell, line) for cell, line in zip(cells, lines, strict=True)]
    first_line: dict[str, int] = {}
    for path, line in zip(paths, lines, strict=True):
        if path in first_line:
            raise DatasetError(
                f"{manifest} line {line}: the path {path} stands already in line {first_line[path]}. Keep one of them."
            )
        first_line[path] = line
    return paths


def _inside(manifest: Path, root: Path, cell: str, line: int) -> str:
    """Give the path relative to the CSV's folder, with forward slashes."""
    if not cell:
        raise DatasetError(f"{manifest} line {line}: the path is empty.")
    if "\0" in cell:
        raise DatasetError(f"{manifest} line {line}: the path holds a NUL character.")
    if "\\" in cell and not (root / cell).exists():
        cell = cell.replace("\\", "/")  # written on Windows
    relative = os.path.relpath(cell, root) if os.path.isabs(cell) else os.path.normpath(cell)
    if relative.startswith("..") and relative.split("/")[0] == "..":
        raise DatasetError(
            f"{manifest} line {line}: {cell} is outside the CSV's folder {root}. "
            "Paths are relative to the CSV: put it above the images."
        )
    return _spelled_as_on_disk(root, relative)


def _spelled_as_on_disk(root: Path, relative: str) -> str:
    """Find a name with umlauts whether the CSV composes them (NFC) or not (NFD, as macOS does)."""
    if relative.isascii() or os.path.lexists(root / relative):
        return relative
    spellings = (unicodedata.normalize(form, relative) for form in ("NFC", "NFD"))
    return next((spelling for spelling in spellings if os.path.lexists(root / spelling)), relative)


def _filled(manifest: Path, column: str, cells: list[str], lines: list[int]) -> list[str]:
    for cell, line in zip(cells, lines, strict=True):
        if not cell:
            raise DatasetError(f"{manifest} line {line}: the {column} is empty. Fill it in, or remove the line.")
    return cells


def _manifest_splits(manifest: Path, cells: list[str], lines: list[int]) -> list[str]:
    for cell, line in zip(cells, lines, strict=True):
        if cell.lower() not in SPLIT_NAMES:
            raise DatasetError(
                f"{manifest} line {line}: {cell!r} is no split; use train, val or test. "
                "Without the column, images are split by patient."
            )
    return [SPLIT_NAMES[cell.lower()] for cell in cells]


# -- npz in MedMNIST's layout -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NpzImages:
    """Images that are rows of `train_images`, `val_images` and `test_images` in one npz file."""

    path: str
    counts: dict[str, int]

    def stamp(self, index: int) -> FileStamp:  # noqa: ARG002 - the protocol's
        """Give size and mtime of the npz file: its rows change together."""
        status = os.stat(self.path)
        return FileStamp(status.st_size, status.st_mtime_ns)

    def contents(self, indices: Sequence[int]) -> "Iterator[tuple[int, Callable[[], Content]]]":
        """Stream the wanted rows: the archive is decompressed once, never held whole."""
        wanted = set(indices)
        start = 0
        for split, count in self.counts.items():
            rows = {index - start for index in wanted if start <= index < start + count}
            try:
                for row, pixels in _npz_rows(self.path, f"{split}_images", rows) if rows else ():
                    yield start + row, partial(_identity, pixels)
            except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise DatasetError(f"{self.path}: {split}_images is damaged: {error}. Copy the file again.") from error
            start += count


def _identity(pixels: "npt.NDArray[np.uint8]") -> "npt.NDArray[np.uint8]":
    return pixels


def _read_npz(path: Path, name: str) -> Dataset:
    import numpy as np

    paths, labels, splits, counts = [], [], [], {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for split in ("train", "val", "test"):
                if f"{split}_images" not in archive.files:
                    continue
                classes = _npz_labels(path, split, archive)
                counts[split] = len(classes)
                labels += classes
                splits += [split] * len(classes)
                paths += [f"{path.name}/{split}/{row}" for row in range(len(classes))]
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise DatasetError(f"{path}: not a readable npz file: {error}.") from error
    if "train" not in counts:
        raise DatasetError(
            f"{path}: no array 'train_images'; expected MedMNIST's train_images, train_labels, val_images…."
        )
    _check_npz_shapes(path, counts)
    return Dataset(name, str(path), paths, labels, splits, None, NpzImages(str(path), counts))


def _npz_labels(path: Path, split: str, archive: "np.lib.npyio.NpzFile") -> list[str]:
    key = f"{split}_labels"
    if key not in archive.files:
        raise DatasetError(f"{path}: {split}_images has no {key} beside it.")
    labels = archive[key]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DatasetError(
            f"{path}: {key} has the shape {labels.shape}; one label an image is needed (shape (n,) or (n, 1))."
        )
    return [str(label) for label in labels.tolist()]


def _check_npz_shapes(path: Path, counts: dict[str, int]) -> None:
    for split, n_labels in counts.items():
        with zipfile.ZipFile(path) as archive, archive.open(f"{split}_images.npy") as member:
            shape = _npz_header(path, split, member)
        if shape[0] != n_labels:
            raise DatasetError(f"{path}: {shape[0]} {split}_images but {n_labels} {split}_labels.")


def _npz_header(path: Path, split: str, member: IO[bytes]) -> tuple[int, ...]:
    """Read an npy header and leave `member` at the first pixel."""
    import numpy as np

    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(member)
    if dtype != np.uint8 or fortran_order or len(shape) not in {3, 4} or shape[3:] not in {(), (1,), (3,)}:
        raise DatasetError(
            f"{path}: {split}_images is {dtype} of shape {shape}; expected uint8 (n, H, W) or (n, H, W, 3), in C order."
        )
    return tuple(shape)


def _npz_rows(path: str, key: str, rows: set[int]) -> "Iterator[tuple[int, npt.NDArray[np.uint8]]]":
    import numpy as np

    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
        shape = _npz_header(Path(path), key.removesuffix("_images"), member)
        row_shape = shape[1:3] if shape[3:] == (1,) else shape[1:]
        n_bytes = int(np.prod(row_shape))
        for row in range(max(rows) + 1):
            content = member.read(n_bytes)
            if row in rows:
                yield row, np.frombuffer(content, np.uint8).reshape(row_shape)
