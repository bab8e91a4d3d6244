"""Files found below a folder by their names, with or without an extension: HAM10000 and ISIC list names alone."""

import os
from collections import defaultdict

from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.decoding.formats import DICOM_SUFFIXES, IMAGE_SUFFIXES
from hoarfrost.features.errors import DatasetError
from hoarfrost.features.files import is_url, suffix_of

_SUFFIXES = IMAGE_SUFFIXES | DICOM_SUFFIXES


def found_below(manifest: str, root: str, paths: Texts, *, is_root_given: bool) -> Texts:
    """Return paths as files below a folder: a name alone, or without its extension, becomes the file's path.

    Files are searched for if a root was given, or if the first path has no known extension and does not exist.

    Raises
    ------
    DatasetError
        If several files have a name.
    """
    if is_url(root) or not len(paths):
        return paths
    is_bare = suffix_of(paths[0]) not in _SUFFIXES and not os.path.lexists(os.path.join(root, paths[0]))
    if not is_bare and not is_root_given:
        return paths
    places, names = _listed(root)

    def place_of(path: str) -> str:
        if path in places or is_url(path):
            return path
        found = names.get(path.rpartition("/")[2], [])
        if len(found) > 1:
            raise DatasetError(
                f"{manifest}: {path}: several files below {root} have this name: {', '.join(sorted(found)[:3])}. Write "
                "their paths, or pass --image-root with a folder that has one of them."
            )
        return found[0] if found else path

    return paths.mapped(place_of)


def _listed(root: str) -> tuple[set[str], dict[str, list[str]]]:
    """Return the paths of the images below a folder, and these by name, with and without the extension."""
    places, names = set[str](), defaultdict[str, list[str]](list)
    for folder, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        for file in sorted(files):
            place = os.path.relpath(os.path.join(folder, file), root)
            places.add(place)
            names[file].append(place)
            stem, dot, _ = file.rpartition(".")
            if dot and suffix_of(file) in _SUFFIXES:
                names[stem].append(place)
    return places, names
