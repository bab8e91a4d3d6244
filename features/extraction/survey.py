"""What is in a dataset, and what preprocessing will do to it: every image is decoded once, and none is embedded."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from pathlib import Path

import numpy as np

from hoarfrost.features.datasets import Dataset, TableOptions, check_classes, hints, read_table
from hoarfrost.features.datasets.conflicts import conflict_text, conflicts
from hoarfrost.features.datasets.hints import masks_among, sides_hint
from hoarfrost.features.datasets.table import Content
from hoarfrost.features.decoding.budget import PixelBudget
from hoarfrost.features.decoding.formats import MAX_PIXELS, unpack
from hoarfrost.features.decoding.images import DEEP_MODES, Decoding
from hoarfrost.features.decoding.isolated import inspect_isolated, resume_decoding, stop_decoding
from hoarfrost.features.decoding.pictures import check_sheet, write_sheet
from hoarfrost.features.decoding.png import GREY_16_WITH_ALPHA
from hoarfrost.features.decoding.views import View
from hoarfrost.features.decoding.windows import Window
from hoarfrost.features.errors import DatasetError, HoarfrostError, ImageDecodeError, Reason, reason_of
from hoarfrost.features.extraction.plan import Progress, kinds_of
from hoarfrost.features.fingerprint import image_key, jpeg_short_side
from hoarfrost.features.processors import usable_cpus

AT_ONCE = 1024  # images that go to the threads together
SHEET_COLUMNS, SHEET_ROWS = 8, 8
# Medians of width / height: of a class with so many images, when far from 1, and when different.
LEAST_SHAPES, FAR_FROM_SQUARE, DIFFERENT_SHAPES = 3, 1.25, 1.15
SHOWN_VALUES = 20  # of an attribute; there may be as many as images
PERCENTILES = "the 0.5% to the 99.5% percentile of its pixels"


@dataclass(frozen=True)
class ImageKind:
    """Images of one format, mode and depth: how many, how large, and what becomes of them."""

    format: str
    mode: str
    bits: int
    images: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    becomes: str


@dataclass(frozen=True)
class Survey:
    """What is in a dataset; `inspect --json` prints it.

    `hints` are what it looks like, and should be known before an extraction. `duplicates` are images whose bytes
    another one has; `patients` their number, if known; `refused` is why `extract` would not accept the dataset, and
    empty if it would.
    """

    data: str
    dataset: str
    images: int
    kinds: tuple[ImageKind, ...]
    labels: Mapping[str, int]
    splits: Mapping[str, int]
    patients: int | None
    attributes: Mapping[str, Mapping[str, int]]
    duplicates: int
    unreadable: int
    unreadable_by_kind: Mapping[str, int]
    errors: tuple[tuple[str, str], ...]
    notes: Mapping[str, int]
    hints: tuple[str, ...]
    refused: str
    contact_sheet: str | None


@dataclass(frozen=True)
class _Seen:
    """One image: its key, kind, and size in pixels; or why it cannot be read."""

    key: bytes = b""
    kind: tuple[str, str, int] = ("", "", 0)
    size: tuple[int, int] = (0, 0)
    error: Reason | None = None
    has_two_values: bool = False
    notes: Counter[str] = field(default_factory=Counter)


def survey(
    data: Path | str,
    *,
    window: Window | None = None,
    max_pixels: int = MAX_PIXELS,
    contact_sheet: Path | None = None,
    table: TableOptions | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Survey:
    """Decode every image of a dataset as `extract` would, and count what there is.

    Parameters
    ----------
    data : Path or str
        See `hoarfrost.features.datasets.read_dataset`; labels may be missing.
    window : Window, optional
    max_pixels : int
        As for an extraction.
    contact_sheet : Path, optional
        Where to write a PNG of up to 64 images as the encoder will see them.
    table : TableOptions, optional
        How the table is read.
    on_progress : callable
        Called after every thousand images.

    Raises
    ------
    HoarfrostError
        If the dataset cannot be listed, or the contact sheet cannot be written.
    """
    if contact_sheet is not None:
        check_sheet(contact_sheet)
    dataset = read_table(data, options=table or TableOptions())
    if not len(dataset):
        raise DatasetError(f"{data}: no images listed. Check that this is the right path.")
    decoding = Decoding(max_pixels, window, PixelBudget())
    seen = _decode_all(dataset, decoding, on_progress)
    if contact_sheet is not None:
        _write_sheet(contact_sheet, dataset, [i for i, image in enumerate(seen) if not image.error], decoding)
    errors = tuple((dataset.paths[i], image.error.text) for i, image in enumerate(seen) if image.error)
    n_different = len({image.key for image in seen if not image.error})
    return Survey(
        data=str(data),
        dataset=dataset.name,
        images=len(dataset),
        kinds=_kinds(seen, decoding),
        labels=_counted(dataset.labels.counts()),
        splits=_counted(dataset.splits.counts()) if dataset.splits is not None else {},
        patients=len(set(dataset.patients.values())) if dataset.patients is not None else None,
        attributes={name: _counted(column.counts(), SHOWN_VALUES) for name, column in dataset.attributes.items()},
        duplicates=len(seen) - len(errors) - n_different,
        unreadable=len(errors),
        unreadable_by_kind=kinds_of(image.error for image in seen if image.error),
        errors=errors,
        notes=dict(sum((image.notes for image in seen), Counter())),
        hints=_hints(dataset, seen),
        refused=_refusal(dataset),
        contact_sheet=str(contact_sheet) if contact_sheet is not None else None,
    )


def _hints(dataset: Dataset, seen: list[_Seen]) -> tuple[str, ...]:
    """Return what the table looks like, and what the decoded images add."""
    found = conflicts(dataset.labels, [image.key for image in seen])
    shapes: defaultdict[str, list[float]] = defaultdict(list)
    for label, image in zip(dataset.labels, seen, strict=True):
        if not image.error:
            shapes[label].append(image.size[0] / image.size[1])
    of_images = (_two_valued(dataset, seen), conflict_text(dataset, found), _stretched(shapes))
    texts = (*hints(dataset), *of_images, sides_hint(dataset))
    return tuple(text for text in texts if text)


def _two_valued(dataset: Dataset, seen: list[_Seen]) -> str:
    """Return a hint if some of the images, but not all, have two values only, and their names do not say it."""
    rows = [row for row, image in enumerate(seen) if image.has_two_values]
    if not rows or len(rows) == len(seen) or masks_among(dataset):
        return ""
    return (
        f"{len(rows):,} of {len(seen):,} images have two values only, like masks (first: {dataset.paths[rows[0]]}). If they "
        "are masks, leave them out with --exclude."
    )


def _stretched(shapes: Mapping[str, list[float]]) -> str:
    """Return a hint if aspect ratios are far from 1 and differ between classes: stretching then shows the class."""
    medians = {label: float(np.median(ratios)) for label, ratios in shapes.items() if len(ratios) >= LEAST_SHAPES}
    if len(medians) < 2:
        return ""
    widest, narrowest = max(medians, key=medians.__getitem__), min(medians, key=medians.__getitem__)
    is_far = max(medians[widest], 1 / medians[narrowest]) > FAR_FROM_SQUARE
    if not is_far or medians[widest] / medians[narrowest] < DIFFERENT_SHAPES:
        return ""
    return (
        f"aspect ratios (width / height) differ between classes: the median is {medians[widest]:.2f} for {widest!r} and "
        f"{medians[narrowest]:.2f} for {narrowest!r}. A head can learn the shape of the file in place of what it shows. "
        "Images that are stretched to a square, as by default, mostly hide their shape. Views with pad show it as black "
        "sides. Do not use pad here, or crop all images to one aspect ratio first."
    )


def _decode_all(dataset: Dataset, decoding: Decoding, on_progress: Callable[[Progress], None]) -> list[_Seen]:
    """Decode all images in threads, in order."""
    started = time.monotonic()
    found: list[_Seen] = []
    contents = dataset.images.contents(range(len(dataset)))
    with ThreadPoolExecutor(usable_cpus()) as pool:
        try:
            while some := list(islice(contents, AT_ONCE)):
                found += pool.map(lambda item: _decode(item[1], decoding), some)
                on_progress(Progress(len(found), len(dataset), len(found) / (time.monotonic() - started)))
        except BaseException:  # Ctrl-C: a thousand images wait, and some may take minutes
            stop_decoding()
            pool.shutdown(wait=True, cancel_futures=True)
            resume_decoding()
            raise
    return found


def _decode(read: Callable[[], Content], decoding: Decoding) -> _Seen:
    """Decode an image in another process, so that one that crashes its decoder is also listed."""
    try:
        content = read()
        key = image_key(content)
        if isinstance(content, np.ndarray):
            return _Seen(key, ("array", "L" if content.ndim == 2 else "RGB", 8), content.shape[1::-1])
        encoded, frame = unpack(content)
        look = inspect_isolated(encoded, frame, decoding.max_pixels, decoding.window, decoding.room, size=decoding.size)
        return _Seen(key, look.kind, look.size, None, look.has_two_values, Counter(look.notes))
    except (ImageDecodeError, MemoryError) as error:
        return _Seen(error=reason_of(error))


def _kinds(seen: list[_Seen], decoding: Decoding) -> tuple[ImageKind, ...]:
    """Group readable images, the most frequent kind first."""
    sizes: defaultdict[tuple[str, str, int], list[tuple[int, int]]] = defaultdict(list)
    for image in seen:
        if not image.error:
            sizes[image.kind].append(image.size)
    return tuple(
        ImageKind(
            *kind, len(found), min(found, key=prod), max(found, key=prod),
            _preprocessing_of(kind, any(min(size) >= 2 * jpeg_short_side(decoding.size) for size in found), decoding),
        )
        for kind, found in sorted(sizes.items(), key=lambda item: (-len(item[1]), item[0]))
    )  # fmt: skip


def _preprocessing_of(kind: tuple[str, str, int], some_large: bool, decoding: Decoding) -> str:
    """Return what preprocessing does to images of a kind, in words."""
    image_format, mode, bits = kind
    steps = []
    if image_format.startswith("DICOM"):
        steps = _dicom_steps(mode, bits, decoding.window)
    else:
        if mode in DEEP_MODES or mode == GREY_16_WITH_ALPHA:
            steps.append(f"scaled to 8 bits from {PERCENTILES}")
        elif bits > 8:
            steps.append(f"the upper 8 of {bits} bits")
        if "alpha" in mode or mode in {"LA", "La", "PA", "RGBA", "RGBa", GREY_16_WITH_ALPHA}:
            steps.append("transparency over black")
        if some_large and image_format in {"JPEG", "MPO"}:
            shorter = jpeg_short_side(decoding.size)
            steps.append(f"large ones decoded at 1/2, 1/4 or 1/8 of their size, the shorter side at least {shorter}")
        is_grey = mode in {"1", "L", "LA", "La", GREY_16_WITH_ALPHA} or mode in DEEP_MODES
        steps.append("grey" if is_grey else "RGB")
    return ", ".join([*steps, f"resized to {decoding.size} x {decoding.size}"])


def _dicom_steps(mode: str, bits: int, window: Window | None) -> list[str]:
    if not mode.startswith("MONOCHROME"):
        deep = [f"{bits} bits scaled to 8"] if bits > 8 else []
        return [*deep, "RGB" if mode == "RGB" else f"{mode} to RGB"]
    first = f"its first VOI LUT or window, else {PERCENTILES}" if window is None else f"window {window}"
    return ["rescaled", first, *(["inverted"] if mode == "MONOCHROME1" else []), "grey"]


def _counted(values: Counter[str], most: int | None = None) -> dict[str, int]:
    """Return counts, the most frequent first; those beyond `most` values are counted together."""
    counts = values.most_common()
    shown, others = dict(counts[:most]), counts[len(counts) if most is None else most :]
    return shown | ({f"{len(others)} others": sum(n for _, n in others)} if others else {})


def _refusal(dataset: Dataset) -> str:
    try:
        check_classes(dataset)
    except DatasetError as error:
        return str(error)
    return ""


def _write_sheet(path: Path, dataset: Dataset, readable: list[int], decoding: Decoding) -> None:
    """Write images from all over the dataset, as the encoder receives them, side by side."""
    if not readable:
        raise HoarfrostError(f"{path}: not written, as none of the {len(dataset)} images can be read.")
    from hoarfrost.features.decoding.quarantine import load_isolated  # here: it loads torch

    places = np.linspace(0, len(readable) - 1, min(len(readable), SHEET_COLUMNS * SHEET_ROWS)).astype(int)
    chosen = [readable[place] for place in places]
    n_rows, size = -(-len(chosen) // SHEET_COLUMNS), decoding.size
    sheet = np.zeros((n_rows * size, min(SHEET_COLUMNS, len(chosen)) * size, 3), np.uint8)
    for i, (_, read) in enumerate(dataset.images.contents(chosen)):
        top, left = i // SHEET_COLUMNS * size, i % SHEET_COLUMNS * size
        sheet[top : top + size, left : left + size] = (
            load_isolated(read(), b"", (View(size),), decoding)[0].expand(3, -1, -1).permute(1, 2, 0).numpy()
        )
    write_sheet(path, sheet)
