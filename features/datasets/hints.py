"""What a dataset looks like before anything is trained: masks among images, patients in names, labels that are none."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from hoarfrost.features.datasets.header import SEPARATORS
from hoarfrost.features.datasets.options import PARENT, part_of
from hoarfrost.features.datasets.table import Dataset
from hoarfrost.features.errors import DatasetError

FEW_IMAGES, MANY_CLASSES = 3, 30
LEAST_SHARE = 0.5  # of images whose names must share a prefix, or of labels that must be numbers
SOME = 200_000  # images that are looked at

_MASK = re.compile(r"^(?:(?:mask|seg|segmentation)[_-](?P<after>.+)|(?P<before>.+?)[ _-](?:masks?|seg|segmentation|segm|gt|"
                   r"groundtruth|annotation|roi)(?:[ _-]?\d+)?)$", re.IGNORECASE)  # fmt: skip
# A patient in a name, then a side, a view or a number: "BP001_L", "p12-3", "case7_right_2".
_PATIENT = r"([^/]*?[A-Za-z]*\d+)[_-](?:[A-Za-z]{1,5}|\d{1,4})(?:[_-][A-Za-z0-9]{1,5})*\.[^./]+$"
_SIDES = {"l": "left", "left": "left", "os": "left", "r": "right", "right": "right", "od": "right"}  # eyes: OD and OS
_OF_SIDES = re.compile(r"laterality|(.*[_ -])?side|left[_ /-]?(or|vs)?[_ /-]?right", re.IGNORECASE)  # a column's name
_MASK_NAMES = frozenset({"mask", "masks", "annotation", "annotations", "gt", "segmentation", "segmentations", "seg"})
_MASK_FOLDERS = _MASK_NAMES | {"image", "images", "img", "imgs"}


def masks_among(dataset: Dataset) -> list[int]:
    """Return the rows of images whose name is another image's in the same folder with a word such as "_mask"."""
    stems = [path.rpartition(".")[0] or path for path in dataset.paths[:SOME]]
    images = set(stems)
    elsewhere = {stem.rpartition("/")[2] for stem in stems if not _is_in_mask_folder(stem)}
    return [row for row, stem in enumerate(stems) if _is_mask(stem, images, elsewhere)]


def _is_mask(stem: str, images: set[str], elsewhere: set[str]) -> bool:
    """Return whether an image of the name without the word is beside it, or the name is that of one in another folder."""
    folder, _, name = stem.rpartition("/")
    match = _MASK.match(name)
    plain = name if match is None else match["after"] or match["before"]
    is_beside = match is not None and f"{folder}/{plain}".lstrip("/") in images
    return is_beside or (_is_in_mask_folder(stem) and bool({name, plain} & elsewhere))


def _is_in_mask_folder(stem: str) -> bool:
    """Return whether a folder below the first, which is a class or a split, has a name such as "masks"."""
    return any(folder.lower() in _MASK_NAMES for folder in stem.split("/")[1:-1])


def hints(dataset: Dataset) -> tuple[str, ...]:
    """Return what should be known before an extraction, each with the way out; nothing of what is ordinary."""
    return (*_masks(dataset), *_labels(dataset), *_patients(dataset))


def _masks(dataset: Dataset) -> Iterator[str]:
    masks = masks_among(dataset)
    if masks:
        first = dataset.paths[masks[0]]
        glob = _glob_of(first)
        yield (
            f"{len(masks):,} of {len(dataset):,} files look like masks of the others (first: {first}). They would be "
            f"embedded and scored as images. To leave them out, pass --exclude '{glob}'."
        )
    folders = sorted({label for label in dataset.labels.values() if label.lower() in _MASK_FOLDERS})
    if folders:
        yield (
            f"the label {folders[0]!r} looks like a folder of images or masks, not a class. Pass the folder above the class "
            "folders, or leave files out with --exclude."
        )


def _glob_of(mask: str) -> str:
    """Return the pattern that leaves out a mask, and those like it."""
    name = (mask.rpartition(".")[0] or mask).rpartition("/")[2]
    match = _MASK.match(name)
    if match is None:
        folder = next(folder for folder in mask.split("/")[1:-1] if folder.lower() in _MASK_NAMES)
        return f"*/{folder}/*"
    return (
        f"{name[: match.start('after')]}*"
        if match["after"]
        else f"*{re.sub(r'[0-9]+$', '*', name[match.end('before') :])}.*"
    )


def _labels(dataset: Dataset) -> Iterator[str]:
    counts = Counter({label: n for label, n in dataset.labels.counts().items() if label})
    if not counts:
        return
    if inverted := _inverted(dataset):
        yield inverted
        return
    n_numbers = sum(re.fullmatch(r"[+-]?\d+([.,]\d+)?", label) is not None for label in counts)
    if n_numbers == len(counts) > 10:
        yield (
            f"the labels are {len(counts)} different numbers. They look like a measurement (a regression), not like classes. "
            "Make classes of them, for example below and above a threshold."
        )
        return
    for separator in SEPARATORS:
        several = [label for label in counts if separator in label]
        if several and {part.strip() for label in several for part in label.split(separator)} & counts.keys():
            yield (
                f"labels such as {several[0]!r} look like several labels of one image. To train one output for each label, "
                f"pass --label-separator '{separator}', then train with --multilabel."
            )
    rare = sorted(label for label, n in counts.items() if n <= FEW_IMAGES)
    if rare:
        yield (
            f"{len(rare)} of {len(counts)} classes have {FEW_IMAGES} images or fewer (first: {rare[0]!r}, "
            f"{counts[rare[0]]}). They cannot be learnt and tested. Merge or leave out such classes."
        )
    if len(counts) >= MANY_CLASSES:
        yield f"there are {len(counts)} classes. Check that the label is a class, not a patient, a file or a measurement."


def _inverted(dataset: Dataset) -> str:
    """Return a hint if each "class" folder has folders of the same few names: those are the classes."""
    below: defaultdict[str, set[str]] = defaultdict(set)
    for path in dataset.paths[:SOME]:
        parts = path.split("/")
        if len(parts) < 3 or parts[0] not in dataset.classes:
            return ""
        below[parts[0]].add(parts[-2])
    n_holding = Counter(name for names in below.values() for name in names)
    if 2 <= len(n_holding) < len(below) and min(n_holding.values()) >= 2:
        return (
            f"the folders look like PATIENT/CLASS: {len(below)} folders hold folders of {len(n_holding)} names "
            f"({', '.join(sorted(n_holding)[:3])}). To read them so, pass --label-from parent --patient-from '^([^/]+)/'."
        )
    return ""


def _patients(dataset: Dataset) -> Iterator[str]:
    if dataset.patients is None and (hint := patients_hint(dataset.paths[:SOME], dataset.classes)):
        yield hint


def patients_hint(paths: Sequence[str], classes: Sequence[str]) -> str:
    """Return what is said where no patients are known, but paths suggest some; empty if they do not."""
    rule = suggested_patients(paths, classes)
    if rule is None:
        return ""
    option = rule if rule == PARENT else f"'{rule}'"
    n = len({part_of(path, rule, "--patient-from") for path in paths})
    return (
        f"no patients are known, but the paths suggest {n:,} patients of {len(paths):,} images. Images of one patient "
        f"in two splits make the test scores too high. To take them, pass --patient-from {option}."
    )


def suggested_patients(paths: Sequence[str], classes: Sequence[str]) -> str | None:
    """Return the rule for --patient-from that the paths suggest: a folder below the class, or a prefix; None if neither."""
    for rule in (PARENT, _PATIENT):
        try:
            found = [part_of(path, rule, "") for path in paths]
        except DatasetError:
            continue
        sizes = Counter(found)
        is_class = rule == PARENT and set(sizes) <= set(classes) | {path.split("/")[0] for path in paths}
        n_shared = sum(n for n in sizes.values() if n > 1)
        if not is_class and len(sizes) > 2 * len(classes) and n_shared >= LEAST_SHARE * len(paths):
            return rule
    return None


def sides_hint(dataset: Dataset) -> str:
    """Return a hint if columns, labels or folders speak of left and right: mirror images are wrong then; else nothing."""
    where = ""
    folders = {folder for path in dataset.paths[:SOME] for folder in path.split("/")[:-1]}
    if _are_sides(folders):
        where = "there are folders for left and right"
    elif _are_sides(dataset.labels.counts()):
        where = "the labels are left and right"
    else:
        of_sides = [
            name
            for name, column in dataset.attributes.items()
            if _OF_SIDES.fullmatch(name) or _are_sides(column.counts())
        ]
        where = f"the column {of_sides[0]!r} states left or right" if of_sides else ""
    return where and (
        f"{where}. A mirror image shows the other side, so flips are wrong where left and right mean something (laterality, "
        "situs). Then leave out views with flip."
    )


def _are_sides(names: Iterable[str]) -> bool:
    """Return whether there is a name for left, and one for right."""
    return {_SIDES.get(name.strip().lower()) for name in names} >= {"left", "right"}
