"""Image folders: `CLASS/image.png`, or `train/CLASS/image.png`."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.datasets.table import SPLIT_NAMES, Dataset, FileImages, composed
from hoarfrost.features.decoding.formats import DICOM_SUFFIXES, HEAD_BYTES, IMAGE_SUFFIXES, is_dicom, may_be_bare_dicom
from hoarfrost.features.errors import DatasetError, ImageDecodeError
from hoarfrost.features.files import FileStamp, RemoteEntry, is_url, join, list_url, opened_file, real_place

IGNORED_NAMES = frozenset({"__MACOSX", "DICOMDIR"})  # what macOS adds; an index of DICOM files, which are listed anyway

Entry = os.DirEntry[str] | RemoteEntry


class _Image(NamedTuple):
    """An image's path below the dataset's folder; its stamp where the listing tells it."""

    path: str
    stamp: FileStamp | None


class _Images(NamedTuple):
    """The images of one label; `listed` has the stamps that came with the listing."""

    label: str
    paths: Texts
    listed: Mapping[str, FileStamp]

    @classmethod
    def of(cls, label: str, images: "Iterable[_Image]") -> "_Images":
        """Return images packed, in the order in which they are found."""
        listed: dict[str, FileStamp] = {}

        def paths() -> Iterator[str]:
            for image in images:
                if image.stamp is not None:
                    listed[image.path] = image.stamp
                yield image.path

        return cls(label, Texts.of(paths()), listed)


def read_folder(root: str, name: str) -> Dataset:
    """Read the table of an image folder, or of one at a URL; the folders' names are the labels."""
    folders = [entry.name for entry in _listing(root) if _is_folder(entry)]
    known = {folder: SPLIT_NAMES[folder.lower()] for folder in folders if folder.lower() in SPLIT_NAMES}
    if "train" in known.values() and len(set(known.values())) > 1:
        return _read_split_folders(root, name, folders, known)
    if known and len(known) == len(folders):
        raise DatasetError(
            f"{root}: only {', '.join(sorted(known))} here; a dataset in split folders needs train and at least one of "
            f"val and test. To have {join(root, folders[0])} split anew, give that folder; else describe the images in a CSV."
        )
    return _dataset(root, name, _read_class_folders(root, ""), None)


def list_images(root: str, name: str) -> Dataset:
    """List all images below a folder, whatever its folders are for."""
    images = _Images.of("", _walk(root, "", seen=set()))
    if not len(images.paths):
        raise DatasetError(
            f"{root}: no images found (files ending in {', '.join(sorted(IMAGE_SUFFIXES))}, or DICOM files). Check that this "
            "is the right path."
        )
    return _dataset(root, name, [images], None)


def _read_split_folders(root: str, name: str, folders: list[str], known: dict[str, str]) -> Dataset:
    others = [folder for folder in folders if folder not in known]
    if others:
        raise DatasetError(
            f"{root}: the folder {others[0]!r} lies beside {', '.join(sorted(known))}, and it is unclear whether it is a "
            "split or a class. Move it away, or describe the images in a CSV."
        )
    if len(set(known.values())) < len(known):
        raise DatasetError(f"{root}: two folders name the same split ({', '.join(sorted(known))}). Merge them.")
    found, splits = [], []
    for folder in sorted(known, key=lambda folder: list(SPLIT_NAMES).index(folder.lower())):
        of_split = _read_class_folders(join(root, folder), f"{folder}/")
        found += of_split
        splits.append(Texts.repeated(known[folder], sum(len(images.paths) for images in of_split)))
    return _dataset(root, name, found, Texts.joined(splits))


def _dataset(root: str, name: str, found: Sequence[_Images], splits: Texts | None) -> Dataset:
    """Return the dataset of what was found: labels, and the images of each."""
    paths = Texts.joined(images.paths for images in found)
    if not len(paths):
        raise _no_images(root)
    labels = Texts.joined(Texts.repeated(images.label, len(images.paths)) for images in found)
    listed = {path: stamp for images in found for path, stamp in images.listed.items()}
    return Dataset(name, root, paths, labels, splits, None, FileImages(root, paths, listed=listed))


def _no_images(root: str) -> DatasetError:
    return DatasetError(
        f"{root}: no images found in class folders (files ending in {', '.join(sorted(IMAGE_SUFFIXES))}, or DICOM files). "
        "Expected ROOT/CLASS/image.png or ROOT/train/CLASS/image.png, or a CSV that names the images."
    )


def _read_class_folders(root: str, prefix: str) -> list[_Images]:
    """List the images below each class folder."""
    found, loose = [], []
    for entry in _listing(root):
        if _is_folder(entry):
            images = _walk(entry.path, f"{prefix}{entry.name}/", seen=_folders_above(root))
            found.append(_Images.of(composed(entry.name), images))
        elif _is_image(entry):
            loose.append(entry.name)
    if loose:
        raise DatasetError(
            f"{root}: {len(loose)} images lie outside any class folder (first: {loose[0]}), so their class is unknown. "
            "Move them into a folder named by their class, or describe the images in a CSV with path,label."
        )
    return found


def _walk(folder: str, prefix: str, seen: set[str]) -> Iterator[_Image]:
    """List images recursively, in name order; links to folders are followed, each folder once.

    A folder that cannot be listed is listed itself: reading it will say why.
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
        yield _Image(prefix.rstrip("/"), None)
        return
    for entry in entries:
        if _is_folder(entry) and not _is_image_name(entry.name):
            yield from _walk(entry.path, f"{prefix}{entry.name}/", seen)
        elif _is_image(entry):
            yield _Image(prefix + entry.name, entry.stamp if isinstance(entry, RemoteEntry) else None)


def _folders_above(folder: str) -> set[str]:
    """List a folder and all above it: a link to one of them would give other classes' images a second label."""
    if is_url(folder):  # where nothing is a link
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


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _is_image(entry: Entry) -> bool:
    """Return whether a file is an image: by its name, or, as archives' DICOM files often lack a suffix, by its content."""
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix in IMAGE_SUFFIXES or suffix in DICOM_SUFFIXES or _holds_dicom(entry)


def _holds_dicom(entry: Entry) -> bool:
    try:
        if not entry.is_file():
            return False
        with opened_file(entry.path) as file:
            head = file.read(HEAD_BYTES)
    except (OSError, ImageDecodeError):  # it may be anything, and has no name of an image
        return False
    if is_dicom(head):
        return True
    if not may_be_bare_dicom(head):
        return False
    from hoarfrost.features.datasets.frames import dicom_header

    return dicom_header(entry.path) is not None
