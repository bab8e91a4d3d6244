"""Image folders: `CLASS/image.png`, or `train/CLASS/image.png`."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from features.datasets.table import SPLIT_NAMES, Dataset, FileImages, composed
from features.errors import DatasetError
from features.formats import DICOM_SUFFIXES, HEAD_BYTES, IMAGE_SUFFIXES, is_dicom, may_be_bare_dicom
from features.texts import Texts

IGNORED_NAMES = frozenset({"__MACOSX", "DICOMDIR"})  # what macOS adds; an index of DICOM files, which are listed anyway


def read_folder(root: Path, name: str) -> Dataset:
    """Read the table of an image folder; the folders' names are the labels."""
    folders = [entry.name for entry in _listing(root) if _is_folder(entry)]
    known = {folder: SPLIT_NAMES[folder.lower()] for folder in folders if folder.lower() in SPLIT_NAMES}
    if "train" in known.values() and len(set(known.values())) > 1:
        return _read_split_folders(root, name, folders, known)
    if known and len(known) == len(folders):
        raise DatasetError(
            f"{root}: only {', '.join(sorted(known))} here; a data set in split folders needs train and at least one of "
            f"val and test. To have {root / folders[0]} split anew, give that folder; else describe the images in a CSV."
        )
    return _dataset(root, name, _read_class_folders(root, ""), None)


def _read_split_folders(root: Path, name: str, folders: list[str], known: dict[str, str]) -> Dataset:
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
        of_split = _read_class_folders(root / folder, f"{folder}/")
        found += of_split
        splits.append(Texts.repeated(known[folder], sum(len(paths) for _, paths in of_split)))
    return _dataset(root, name, found, Texts.joined(splits))


def _dataset(root: Path, name: str, found: Sequence[tuple[str, Texts]], splits: Texts | None) -> Dataset:
    """Make the table of what was found, labels and the paths of each."""
    paths = Texts.joined(paths for _, paths in found)
    if not len(paths):
        raise _no_images(root)
    labels = Texts.joined(Texts.repeated(label, len(paths)) for label, paths in found)
    return Dataset(name, str(root), paths, labels, splits, None, FileImages(str(root), paths))


def _no_images(root: Path) -> DatasetError:
    return DatasetError(
        f"{root}: no images found in class folders (files ending in {', '.join(sorted(IMAGE_SUFFIXES))}, or DICOM files). "
        "Expected ROOT/CLASS/image.png or ROOT/train/CLASS/image.png, or a CSV that names the images."
    )


def _read_class_folders(root: Path, prefix: str) -> list[tuple[str, Texts]]:
    """List the images below each class folder: labels, and paths relative to the data set's root."""
    found, loose = [], []
    for entry in _listing(root):
        if _is_folder(entry):
            paths = Texts.of(_walk(entry.path, f"{prefix}{entry.name}/", seen=_folders_above(root)))
            found.append((composed(entry.name), paths))
        elif _is_image(entry):
            loose.append(entry.name)
    if loose:
        raise DatasetError(
            f"{root}: {len(loose)} images lie outside any class folder (first: {loose[0]}), so their class is unknown. "
            "Move them into a folder named by their class, or describe the images in a CSV with path,label."
        )
    return found


def _walk(folder: str, prefix: str, seen: set[str]) -> Iterator[str]:
    """List images recursively, in name order; links to folders are followed, each folder once."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for entry in _listing(folder):
        if _is_folder(entry) and not _is_image_name(entry.name):
            yield from _walk(entry.path, f"{prefix}{entry.name}/", seen)
        elif _is_image(entry):
            yield prefix + entry.name


def _folders_above(folder: Path) -> set[str]:
    """List a folder and all above it: a link to one of them would give other classes' images a second label."""
    real = Path(os.path.realpath(folder))
    return {str(real), *map(str, real.parents)}


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _listing(folder: Path | str) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as entries:
            visible = [e for e in entries if not e.name.startswith(".") and e.name not in IGNORED_NAMES]
    except OSError as error:
        raise DatasetError(f"{folder}: the folder cannot be listed: {error.strerror}.") from error
    return sorted(visible, key=lambda entry: entry.name)


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _is_image(entry: "os.DirEntry[str]") -> bool:
    """Tell images by their names; archives' DICOM files, which often have none to speak of, by their content."""
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix in IMAGE_SUFFIXES or suffix in DICOM_SUFFIXES or _holds_dicom(entry)


def _holds_dicom(entry: "os.DirEntry[str]") -> bool:
    try:
        if not entry.is_file():
            return False
        with open(entry.path, "rb", buffering=0) as file:
            head = file.read(HEAD_BYTES)
    except OSError:  # it may be anything, and has no name of an image
        return False
    if is_dicom(head):
        return True
    if not may_be_bare_dicom(head):
        return False
    from features.datasets.frames import dicom_header

    return dicom_header(entry.path) is not None
