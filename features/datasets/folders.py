"""Image folders: `CLASS/image.png`, or `train/CLASS/image.png`."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.datasets.frames import dicom_header
from hoarfrost.features.datasets.table import SPLIT_NAMES, Dataset, FileImages, split_of, to_nfc
from hoarfrost.features.decoding.formats import DICOM_SUFFIXES, HEAD_BYTES, IMAGE_SUFFIXES, is_dicom, may_be_bare_dicom
from hoarfrost.features.errors import DatasetError, ImageDecodeError
from hoarfrost.features.files import FileStamp, RemoteEntry, is_url, join, list_url, opened_file, real_place, suffix_of

# Added by macOS; an index of DICOM files, which are listed themselves.
IGNORED_NAMES = frozenset({"__MACOSX", "DICOMDIR"})

_SUFFIXES = IMAGE_SUFFIXES | DICOM_SUFFIXES
_SEARCHED = f"files ending in {', '.join(sorted(IMAGE_SUFFIXES))}, or DICOM files"

Entry = os.DirEntry[str] | RemoteEntry
Stamps = dict[str, FileStamp]
"""By path: the stamps that came with the listing of a URL."""
Labelled = tuple[str, Texts]
"""A label, and the paths of its images."""


def read_folder(root: str, name: str) -> Dataset:
    """Read the table of an image folder, on disk or at a URL; the folders' names are the labels."""
    folders = [entry.name for entry in _listing(root) if _is_folder(entry)]
    known = {folder: split_of(folder) for folder in folders if split_of(folder)}
    if "train" in known.values() and len(set(known.values())) > 1:
        return _read_split_folders(root, name, folders, known)
    if known and len(known) == len(folders):
        raise DatasetError(
            f"{root}: only {', '.join(sorted(known))} found; a dataset in split folders needs train and at least one of "
            f"val and test. To split the images again, pass {join(root, folders[0])}. Otherwise list the images in a CSV."
        )
    listed: Stamps = {}
    return _dataset(root, name, _read_class_folders(root, "", listed), None, listed)


def list_images(root: str, name: str) -> Dataset:
    """List all images below a folder, without labels and splits."""
    listed: Stamps = {}
    paths = Texts.of(_walk(root, "", set(), listed))
    if not len(paths):
        raise DatasetError(f"{root}: no images found ({_SEARCHED}). Check that this is the right path.")
    return _dataset(root, name, [("", paths)], None, listed)


def _read_split_folders(root: str, name: str, folders: list[str], known: dict[str, str]) -> Dataset:
    others = [folder for folder in folders if folder not in known]
    if others:
        raise DatasetError(
            f"{root}: the folder {others[0]!r} is next to {', '.join(sorted(known))}; it is unclear whether it is a split or "
            "a class. Move it elsewhere, or list the images in a CSV."
        )
    if len(set(known.values())) < len(known):
        raise DatasetError(f"{root}: two folders are the same split ({', '.join(sorted(known))}). Merge them.")
    listed: Stamps = {}
    found, splits = [], []
    for folder in sorted(known, key=lambda folder: list(SPLIT_NAMES).index(split_of(folder))):
        in_split = _read_class_folders(join(root, folder), f"{folder}/", listed)
        found += in_split
        splits.append(Texts.repeated(known[folder], sum(len(paths) for _, paths in in_split)))
    return _dataset(root, name, found, Texts.joined(splits), listed)


def _dataset(root: str, name: str, found: Sequence[Labelled], splits: Texts | None, listed: Stamps) -> Dataset:
    paths = Texts.joined(paths for _, paths in found)
    if not len(paths):
        raise DatasetError(
            f"{root}: no images found in class folders ({_SEARCHED}). Expected ROOT/CLASS/image.png, "
            "ROOT/train/CLASS/image.png, or a CSV that lists the images."
        )
    labels = Texts.joined(Texts.repeated(label, len(paths)) for label, paths in found)
    return Dataset(name, root, paths, labels, splits, None, FileImages(root, paths, listed=listed))


def _read_class_folders(root: str, prefix: str, listed: Stamps) -> list[Labelled]:
    """List the images below each class folder, and add their stamps to `listed`."""
    found, loose = [], []
    for entry in _listing(root):
        if _is_folder(entry):
            images = _walk(entry.path, f"{prefix}{entry.name}/", _folders_above(root), listed)
            found.append((to_nfc(entry.name), Texts.of(images)))
        elif _is_image(entry):
            loose.append(entry.name)
    if loose:
        raise DatasetError(
            f"{root}: {len(loose)} images are not in a class folder (first: {loose[0]}), so their class is unknown. "
            "Move them into a folder named after their class, or list the images in a CSV with the columns path,label."
        )
    return found


def _walk(folder: str, prefix: str, seen: set[str], listed: Stamps) -> Iterator[str]:
    """Yield the paths of images recursively, in name order; links to folders are followed, each folder once.

    A folder that cannot be listed is yielded itself: reading it will report the reason.
    """
    real = real_place(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        entries = _listing(folder)
    except DatasetError:
        if not prefix:
            raise
        yield prefix.rstrip("/")
        return
    for entry in entries:
        if _is_folder(entry) and suffix_of(entry.name) not in IMAGE_SUFFIXES:
            yield from _walk(entry.path, f"{prefix}{entry.name}/", seen, listed)
        elif _is_image(entry):
            path = prefix + entry.name
            if isinstance(entry, RemoteEntry) and entry.stamp is not None:
                listed[path] = entry.stamp
            yield path


def _folders_above(folder: str) -> set[str]:
    """Return a folder and all above it: a link to one of them would give other classes' images a second label."""
    if is_url(folder):  # URLs have no links
        return set()
    real = Path(os.path.realpath(folder))
    return {str(real), *map(str, real.parents)}


def _is_folder(entry: Entry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _listing(folder: str) -> list[Entry]:
    entries: list[Entry]
    try:
        if is_url(folder):
            entries = [*list_url(folder)]
        else:
            with os.scandir(folder) as found:
                entries = [*found]
    except OSError as error:
        raise DatasetError(f"{folder}: the folder cannot be listed: {error.strerror}.") from error
    visible = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in IGNORED_NAMES]
    return sorted(visible, key=lambda entry: entry.name)


def _is_image(entry: Entry) -> bool:
    """Return whether a file is an image: by its name, or by its content, as DICOM files in archives often lack a suffix."""
    return suffix_of(entry.name) in _SUFFIXES or _contains_dicom(entry)


def _contains_dicom(entry: Entry) -> bool:
    try:
        if not entry.is_file():
            return False
        with opened_file(entry.path) as file:
            head = file.read(HEAD_BYTES)
            if is_dicom(head) or not may_be_bare_dicom(head):
                return is_dicom(head)
            return dicom_header(file, entry.path) is not None
    except (OSError, ImageDecodeError):  # it may be anything, and its name is not an image's
        return False
