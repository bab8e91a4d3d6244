"""An extraction's options, what is known of each image, and the summary."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache import DatasetTable
from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.datasets import Dataset, FileStamp, Stamps, TableOptions
from hoarfrost.features.decoding.formats import MAX_PIXELS
from hoarfrost.features.decoding.windows import Window
from hoarfrost.features.encoder.drift import Drift
from hoarfrost.features.encoder.registry import DEFAULT
from hoarfrost.features.errors import HoarfrostError, ImageDecodeError, Reason
from hoarfrost.features.extraction.engines import EngineOptions, LocalOptions
from hoarfrost.features.fingerprint import KEY_BYTES

MAX_BAD = 0.05
SHOWN_KINDS = 8
SHOWN_ERRORS = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractOptions:
    """How to extract.

    Attributes
    ----------
    weights : str
        See `hoarfrost.features.encoder.backbone.load_weights`.
    device : str
        "auto" (cuda where there is one, else cpu), "cpu", "cuda" or "mps".
    precision : str
        "auto" (the cache's own; for a new one bfloat16 where the device multiplies it natively, else float32),
        "float32", "bfloat16", "int8" (on the CPU, by OpenVINO), or "fast": "int8" where that doubles the speed, else "auto".
    views : str
        Names of views and sets of views, see `hoarfrost.features.decoding.views.parse_views`; by default those of the cache,
        for a new one the encoder's own.
    layers : tuple of int or None
        The stages whose means are the embeddings, see `EncoderSpec.stages_of`; None for those of the cache's embeddings, for
        a new one the last alone.
    encoder : str
        Its name, see `hoarfrost.features.encoder.registry`.
    batch_size : int or None
        By default 256 on a GPU, else 32. On a CPU, where results do not depend on it, at most 64, so that an extraction
        commits and stops within seconds.
    workers : int or None
        Threads that read and decode; by default as many as CPUs that this process may use.
    decode : str
        "threads", "processes" (as many), or "auto": processes beside a GPU, where there are enough images and CPUs.
    on_error : str
        "skip" records an unreadable image and continues; "fail" stops at the first.
    rehash : bool
        Read every file again, even where size and mtime say that it is unchanged.
    window : Window or None
        What of grey DICOM images is shown, in place of each file's own window; part of the fingerprint.
    max_pixels : int
        Larger images are unreadable.
    max_bad : float
        Share of the images that may be unreadable; see `check_bad_images`.
    keep_ids : bool
        Keep the patient ids of DICOM files unchanged, in place of a salted hash.
    region : "box", "mask" or None
        What each image is cut to, see `hoarfrost.features.extraction.regions`; or, if `views` have "region" in their names,
        what these show. None for the whole image.
    margin : float or None
        Added around a region, as a share of its longer side; None for 0.1.
    shard_size : int or None
        The most bytes of one file of the cache; see `CacheWriter`.
    table : TableOptions
        How the dataset's table is read.
    engine : EngineOptions
        Which engine embeds, with its own options; see `hoarfrost.features.extraction.engines`.
    """

    weights: str = "imagenet"
    device: str = "auto"
    precision: str = "auto"
    views: str = ""
    layers: tuple[int, ...] | None = None
    encoder: str = DEFAULT.name
    batch_size: int | None = None
    workers: int | None = None
    decode: str = "auto"
    on_error: str = "skip"
    rehash: bool = False
    window: Window | None = None
    max_pixels: int = MAX_PIXELS
    max_bad: float = MAX_BAD
    keep_ids: bool = False
    region: str | None = None
    margin: float | None = None
    shard_size: int | None = None
    table: TableOptions = field(default_factory=TableOptions)
    engine: EngineOptions = field(default_factory=LocalOptions)


@dataclass(frozen=True)
class Progress:
    """How far an extraction is: images done, of how many to do; images per second; and a cluster's workers."""

    done: int
    total: int
    images_per_second: float
    workers: int | None = None


@dataclass(frozen=True)
class ExtractSummary:
    """What an extraction did; `extract --json` prints it.

    `images` = `embedded` + `reused` + `failed`. `views` are those that were asked for; an image is embedded if one of them
    was missing. `forward_images` counts what went through the encoder: each look at an image. `errors` are paths and
    reasons, `failed_by_kind` counts the reasons' kinds, `notes` what was ignored in images that were read. `workers` are
    the processes that embedded at the same time: 0 if all images were known, 1 without Ray. `drift` is that of 8-bit
    integers from float32, where it was measured.
    """

    images: int
    embedded: int
    reused: int
    failed: int
    forward_images: int
    seconds: float
    images_per_second: float
    dataset: str
    cache: str
    fingerprint: str
    weights: str
    device: str
    precision: str
    views: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    errors: tuple[tuple[str, str], ...] = ()
    failed_by_kind: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    engine: str = "local"
    workers: int = 0
    drift: Drift | None = None


@dataclass
class LoopCounts:
    """What was done so far, on which device, and by how many processes at the same time."""

    device: str
    workers: int = 0
    embedded: int = 0
    forward_images: int = 0
    notes: Counter[str] = field(default_factory=Counter)


class ImageRecords:
    """What is known of each image of the dataset, filled in as the extraction goes."""

    def __init__(self, n_images: int) -> None:
        self.keys = np.zeros((n_images, KEY_BYTES), np.uint8)
        self.readable = np.zeros(n_images, bool)
        self.sizes = np.full(n_images, -1, np.int64)
        self.mtimes_ns = np.full(n_images, -1, np.int64)
        self.errors: dict[int, Reason] = {}

    def set(self, index: int, stamp: FileStamp, key: bytes) -> None:
        """Record a readable image: the key of its bytes, and size and mtime of its file."""
        self.keys[index] = np.frombuffer(key, np.uint8)
        self.readable[index] = True
        self.sizes[index], self.mtimes_ns[index] = stamp.size, stamp.mtime_ns

    def set_stamps(self, stamps: Stamps) -> None:
        """Set the stamps of the images that are known; those of others are set when they are read."""
        self.sizes, self.mtimes_ns = stamps.sizes, stamps.mtimes_ns
        self.sizes[~self.readable] = self.mtimes_ns[~self.readable] = -1

    def take(self, indices: npt.NDArray[np.int64], part: "ImageRecords") -> None:
        """Copy the records of some images from another table: those at `indices` (n,), in its order."""
        self.keys[indices], self.readable[indices] = part.keys, part.readable
        self.sizes[indices], self.mtimes_ns[indices] = part.sizes, part.mtimes_ns
        self.errors.update({int(indices[place]): reason for place, reason in part.errors.items()})

    def reasons(self) -> dict[int, str]:
        """Return why images cannot be read, by their place in the dataset, ascending."""
        return {index: reason.text for index, reason in sorted(self.errors.items())}

    def for_dataset(self, dataset: Dataset) -> DatasetTable:
        """Return the cache's table; `rows` are 0 for readable images, -1 for unreadable ones."""
        return DatasetTable(
            name=dataset.name,
            source=dataset.source,
            paths=dataset.paths,
            rows=np.where(self.readable, 0, -1),
            labels=dataset.labels,
            errors=Texts.sparse(len(dataset), self.reasons()),
            sizes=self.sizes,
            mtimes_ns=self.mtimes_ns,
            splits=dataset.splits,
            patients=dataset.patients,
            attributes=dataset.attributes,
        )


class BadImages:
    """Warns about unreadable images, and stops the extraction at the first, or at too many, as asked.

    `errors` are the reasons known so far, by the image's index: `ImageRecords.errors`, which grows.
    """

    def __init__(self, dataset: Dataset, errors: dict[int, Reason], options: ExtractOptions) -> None:
        self._dataset = dataset
        self._errors = errors
        self._options = options
        self._n_warned = 0

    def note(self, index: int, reason: Reason) -> None:
        """Warn that an image is skipped, whose reason is among the errors already; raise if that stops the extraction."""
        path = self._dataset.paths[index]
        if self._options.on_error == "fail":
            text = f"{path}: {reason.text}. Copy it again, or pass --on-error skip to list it and continue."
            raise ImageDecodeError(reason.kind, text=text)
        self._n_warned += 1
        if self._n_warned <= SHOWN_ERRORS:
            logger.warning("Skipped %s: %s", path, reason.text)
        elif self._n_warned == SHOWN_ERRORS + 1:
            logger.warning("More images are unreadable. They are skipped and recorded without a message each.")
        check_bad_images(self._dataset, self._errors, self._options.max_bad)


def kinds_of(reasons: Iterable[Reason]) -> dict[str, int]:
    """Count reasons by kind, the most frequent first."""
    return dict(Counter(reason.kind for reason in reasons).most_common())


def check_bad_images(dataset: Dataset, errors: dict[int, Reason], max_bad: float) -> None:
    """Raise HoarfrostError, with an example of each kind of error, if more than a share `max_bad` of images is unreadable.

    A single one is always allowed, unless `max_bad` is 0.
    """
    if len(errors) <= (max(1.0, max_bad * len(dataset)) if max_bad else 0):
        return
    # Reversed: the first of each kind stays.
    first = {reason.kind: (index, reason.text) for index, reason in reversed(errors.items())}
    examples = {kind: f"{dataset.paths[index]}: {text}" for kind, (index, text) in first.items()}
    kinds = list(kinds_of(errors.values()).items())
    listed = "; ".join(f"{kind}: {n:,} (as {examples[kind]})" for kind, n in kinds[:SHOWN_KINDS])
    more = f"; and {len(kinds) - SHOWN_KINDS} more kinds" if len(kinds) > SHOWN_KINDS else ""
    raise HoarfrostError(
        f"{dataset.source}: {len(errors):,} of {len(dataset):,} images are unreadable so far, more than --max-bad "
        f"{max_bad:g} allows: {listed}{more}. What is embedded is saved. Fix or remove these images, or pass a larger "
        "--max-bad. Then run the same command again to continue."
    )
