"""The loop gives each image its embedding, in order, in buffers of bounded number, while the device computes."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hoarfrost.features.cache import CacheFile, CacheWriter, EmbeddingCache
from hoarfrost.features.datasets import Dataset, FileStamp
from hoarfrost.features.decoding.looks import load_image
from hoarfrost.features.decoding.quarantine import Quarantine
from hoarfrost.features.errors import HoarfrostError, ImageDecodeError
from hoarfrost.features.extraction.buffers import N_BUFFERS, n_decoders, n_processes
from hoarfrost.features.extraction.interrupts import StopSignals
from hoarfrost.features.extraction.loop import SAMPLE_IMAGES, EmbeddingLoop, Work, sample_images
from hoarfrost.features.extraction.plan import BadImages, ExtractOptions, ImageRecords, LoopCounts, Progress
from hoarfrost.features.fingerprint import pixels_key
from tests.support.caches import HEADER
from tests.support.standin import StandIn

Content = bytes | npt.NDArray[np.uint8]
UNREADABLE = b"no image"


def square(value: int) -> npt.NDArray[np.uint8]:
    """Return an image whose pixels, and embedding, are this value throughout."""
    return np.full((4, 4), value, np.uint8)


@dataclass
class Memory:
    """Images that are in memory; reading each takes so many seconds."""

    images: Sequence[Content]
    seconds: Sequence[float] = ()
    location: str = "memory"
    is_remote: bool = False
    n_read: int = 0
    asked: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def stamp(self, index: int) -> FileStamp:
        return FileStamp(100 + index, 1_000_000 + index)

    def contents(self, indices: Sequence[int]) -> Iterator[tuple[int, Callable[[], Content]]]:
        for index in indices:
            self.asked.append(index)
            yield index, partial(self.read, index)

    def region(self, index: int) -> None: ...

    def read(self, index: int) -> Content:
        with self.lock:
            self.n_read += 1
        if self.seconds:
            time.sleep(self.seconds[index % len(self.seconds)])
        return self.images[index]


def dataset_of(memory: Memory) -> Dataset:
    paths = [f"{index}.png" for index in range(len(memory.images))]
    return Dataset("demo", "memory", paths, ["benign"] * len(paths), None, None, memory)


@dataclass(frozen=True)
class Extracted:
    """What an extraction left: embeddings by index, reasons by index, and the cache's keys in their order."""

    embeddings: dict[int, bytes]
    errors: dict[int, str]
    keys: list[bytes]
    counts: LoopCounts
    progress: list[int]


def extract(memory: Memory, backbone: StandIn, folder: Path, *, batch_size: int = 4, **options: Any) -> Extracted:
    """Run the loop over all images and a fresh cache."""
    dataset, table = dataset_of(memory), ImageRecords(len(memory.images))
    progress: list[Progress] = []
    extract_options = ExtractOptions(**{"workers": 2, "max_bad": 1.0, **options})
    with (
        CacheWriter(folder / "c.h5", HEADER, dataset.name) as writer,
        Quarantine(writer.path, n_decoders(extract_options)) as quarantine,
    ):
        loop = EmbeddingLoop(
            writer,
            quarantine,
            lambda: backbone,  # type: ignore[arg-type, return-value]
            "cpu",
            batch_size,
            extract_options,
            n_processes=n_processes(extract_options, "cpu", len(dataset)),
        )
        bad = BadImages(dataset, table.errors, extract_options)
        work = Work(memory, dataset.paths, range(len(dataset)), table, bad.note, progress.append)
        counts = loop.run(work, StopSignals())
        writer.finish(table.for_dataset(dataset), table.keys)
    with EmbeddingCache(folder / "c.h5") as cache, CacheFile(folder / "c.h5") as file:
        rows, readable = cache.arrays(cache.dataset())
        embeddings = dict(zip(np.flatnonzero(readable).tolist(), [row.tobytes() for row in rows], strict=True))
        keys = [key.tobytes() for key in file.keys]
    return Extracted(embeddings, table.reasons(), keys, counts, [each.done for each in progress])


def one_by_one(images: Sequence[Content]) -> dict[int, bytes]:
    """Embed each image alone, as the loop must."""
    embeddings = {}
    for index, content in enumerate(images):
        try:
            pixels = load_image(content).expand(3, -1, -1)
        except ImageDecodeError:
            continue
        embeddings[index] = StandIn().embed(pixels[None]).numpy()[0].tobytes()
    return embeddings


# -- backbones that have a batch in flight, as a GPU has ----------------------------------------------------------------


class CopiesAtStart(StandIn):
    """Copies the images at once, and computes when the result is asked for."""

    n_in_flight = 1

    def start(self, images: torch.Tensor) -> Callable[[], torch.Tensor]:
        copied = images.clone()
        return lambda: self.embed(copied)


class CopiesLate(StandIn):
    """Reads the images only when the result is asked for, as a copy from pinned memory may."""

    n_in_flight = 1

    def start(self, images: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: self.embed(images)


BACKBONES = [StandIn, CopiesAtStart, CopiesLate]

CASES: dict[str, list[Content]] = {
    "all different": [square(i) for i in range(12)],
    "a last batch that is short": [square(i) for i in range(10)],
    "fewer than a batch": [square(i) for i in range(3)],
    "one": [square(7)],
    "duplicates within a batch": [square(i) for i in (1, 1, 2, 1, 3, 4, 4, 5)],
    "duplicates in the batch in flight": [square(i) for i in (1, 2, 3, 4, 4, 5, 1, 6, 6, 7, 4, 1)],
    "a batch of nothing but duplicates": [square(i) for i in (1, 2, 3, 4, 4, 3, 2, 1, 1, 1, 1, 1, 5)],
    "all the same": [square(9)] * 13,
    "unreadable ones": [UNREADABLE, square(1), b"", square(2), square(3), UNREADABLE, square(4), square(5), UNREADABLE],
    "a batch of unreadable ones": [square(1), *[UNREADABLE] * 7, square(2)],
    "unreadable ones at the end": [square(1), *[UNREADABLE] * 8],
    "colour": [np.full((4, 4, 3), (i, 2 * i, 3 * i), np.uint8) for i in range(9)],
}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("case", CASES)
def test_each_image_has_the_embedding_that_it_has_alone(tmp_path: Path, case: str, backbone: type[StandIn]) -> None:
    images = CASES[case]
    extracted = extract(Memory(images), backbone(), tmp_path)
    assert extracted.embeddings == one_by_one(images)
    assert extracted.embeddings.keys().isdisjoint(extracted.errors)
    assert len(extracted.embeddings) + len(extracted.errors) == len(images)
    assert extracted.counts.embedded == len(set(extracted.embeddings.values())) == len(extracted.keys)
    assert extracted.progress[-1] == len(images)


@settings(max_examples=60)
@given(
    values=st.lists(st.integers(-2, 6), min_size=1, max_size=24),
    batch_size=st.integers(1, 6),
    workers=st.integers(1, 3),
    backbone=st.sampled_from(BACKBONES),
)
def test_any_mixture_in_any_batches_gives_each_image_its_own_embedding(
    values: list[int], batch_size: int, workers: int, backbone: type[StandIn]
) -> None:
    images = [square(value) if value >= 0 else UNREADABLE for value in [*values, 0]]
    with tempfile.TemporaryDirectory() as folder:
        extracted = extract(Memory(images), backbone(), Path(folder), batch_size=batch_size, workers=workers)
    assert extracted.embeddings == one_by_one(images)


def test_each_different_image_goes_through_the_backbone_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "forwarded", 0)
    extracted = extract(Memory(CASES["duplicates in the batch in flight"]), CopiesLate(), tmp_path)
    assert StandIn.forwarded == extracted.counts.forward_images == 7


def test_what_is_in_the_cache_already_is_not_embedded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(Memory([square(i) for i in range(6)]), StandIn(), tmp_path)
    monkeypatch.setattr(StandIn, "forwarded", 0)
    images = [square(i) for i in (7, 1, 2, 8, 3, 4, 5, 0, 9, 1)]
    extracted = extract(Memory(images), CopiesLate(), tmp_path)
    assert StandIn.forwarded == extracted.counts.embedded == 3
    assert extracted.embeddings == one_by_one(images)


def test_nothing_new_makes_no_backbone(tmp_path: Path) -> None:
    extract(Memory([square(1), square(2)]), StandIn(), tmp_path)

    class NoBackbone(StandIn):
        def start(self, images: torch.Tensor) -> Callable[[], torch.Tensor]:
            raise AssertionError(f"{len(images)} images for the backbone")

    assert extract(Memory([square(2), square(1), UNREADABLE]), NoBackbone(), tmp_path).counts.embedded == 0


# -- order --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("workers", [1, 5])
def test_rows_follow_the_dataset_whichever_thread_reads_first(
    tmp_path: Path, workers: int, backbone: type[StandIn]
) -> None:
    images: list[Content] = [square(i) for i in np.random.default_rng(0).permutation(30)]
    images[11] = UNREADABLE
    memory = Memory(images, seconds=(0.004, 0.0, 0.002, 0.0, 0.0, 0.003, 0.001))
    extracted = extract(memory, backbone(), tmp_path, workers=workers)
    assert extracted.keys == [pixels_key(image) for image in images if not isinstance(image, bytes)]
    assert memory.asked == list(range(30))
    assert list(extracted.errors) == [11]


def test_progress_is_reported_up_to_the_last_image(tmp_path: Path) -> None:
    extracted = extract(Memory([square(i) for i in range(10)], seconds=(0.03,)), StandIn(), tmp_path, workers=1)
    assert extracted.progress == sorted(extracted.progress)
    assert extracted.progress[-1] == 10


# -- errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_stopping_at_an_unreadable_image_keeps_what_is_finished(tmp_path: Path, backbone: type[StandIn]) -> None:
    images = [*(square(i) for i in range(12)), UNREADABLE, *(square(i) for i in range(13, 20))]
    with pytest.raises(ImageDecodeError, match=r"12.png: no image format recognised.*--on-error skip"):
        extract(Memory(images), backbone(), tmp_path, on_error="fail")
    images[12] = square(12)
    # The batch in flight, if there is one, is lost: a GPU's error may be why it ends.
    assert extract(Memory(images), StandIn(), tmp_path).counts.embedded <= 8 + 4 * backbone.n_in_flight


class BreaksDown(StandIn):
    """Fails at its third batch, when the result is asked for."""

    n_in_flight = 1
    n_started = 0

    def start(self, images: torch.Tensor) -> Callable[[], torch.Tensor]:
        self.n_started += 1
        return self.fail if self.n_started == 3 else partial(self.embed, images)

    def fail(self) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_device_that_breaks_down_ends_it_and_what_is_finished_is_kept(tmp_path: Path) -> None:
    images = [square(i) for i in range(20)]
    n_threads = threading.active_count()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        extract(Memory(images), BreaksDown(), tmp_path)
    assert threading.active_count() == n_threads
    assert extract(Memory(images), StandIn(), tmp_path).counts.embedded == 12


def test_many_unreadable_images_are_not_reported_one_by_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extracted = extract(Memory([square(1), *[UNREADABLE] * 20]), StandIn(), tmp_path)
    assert len(extracted.errors) == 20
    assert len(caplog.messages) == 6
    assert caplog.messages[-1].startswith("More images are unreadable")


# -- buffers ------------------------------------------------------------------------------------------------------------


class KeepsImages(StandIn):
    """Holds on to what it is given, so that no memory of it can be used again but by the loop itself."""

    def __init__(self, memory: Memory, n_in_flight: int) -> None:
        self.memory = memory
        self.n_in_flight = n_in_flight
        self.given: list[torch.Tensor] = []
        self.n_ahead: list[int] = []

    def start(self, images: torch.Tensor) -> Callable[[], torch.Tensor]:
        self.n_ahead.append(self.memory.n_read - sum(map(len, self.given)))
        self.given.append(images)
        return partial(self.embed, images)


@pytest.mark.parametrize("n_in_flight", [0, 1])
def test_all_batches_are_read_into_the_same_few_buffers(tmp_path: Path, n_in_flight: int) -> None:
    memory = Memory([square(i) for i in range(100)])
    backbone = KeepsImages(memory, n_in_flight)
    extract(memory, backbone, tmp_path)
    assert len(backbone.given) == 25
    assert len({images.untyped_storage().data_ptr() for images in backbone.given}) <= N_BUFFERS


@pytest.mark.parametrize("n_in_flight", [0, 1])
def test_reading_is_ahead_by_what_the_buffers_hold_at_most(tmp_path: Path, n_in_flight: int) -> None:
    memory = Memory([square(i) for i in range(60)])
    backbone = KeepsImages(memory, n_in_flight)
    extract(memory, backbone, tmp_path, workers=4)
    assert max(backbone.n_ahead) <= N_BUFFERS * 4


def test_buffers_of_batches_without_anything_new_are_used_again(tmp_path: Path) -> None:
    images = [square(i % 4) for i in range(40)] + [UNREADABLE] * 40 + [square(200)]
    assert extract(Memory(images), CopiesLate(), tmp_path).counts.embedded == 5


# -- reading while the device computes ----------------------------------------------------------------------------------


class WaitsForReading(StandIn):
    """Is done with a batch only when images of the next one were read, unless all are."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.n_given = 0

    def start(self, images: torch.Tensor) -> Callable[[], torch.Tensor]:
        self.n_given += len(images)
        deadline = time.monotonic() + 20
        while self.memory.n_read < min(self.n_given + 4, len(self.memory.images)):
            assert time.monotonic() < deadline, "nothing is read while the backbone computes"
            time.sleep(0.001)
        return super().start(images)


def test_the_next_batch_is_read_while_the_backbone_computes(tmp_path: Path) -> None:
    memory = Memory([square(i) for i in range(24)])
    assert extract(memory, WaitsForReading(memory), tmp_path, workers=1).counts.embedded == 24


def test_reading_and_computing_take_less_time_than_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_batches, batch_s = 10, 0.08
    monkeypatch.setattr(StandIn, "seconds_a_batch", batch_s)

    def seconds(attempt: int) -> float:
        memory = Memory([square(i) for i in range(4 * n_batches)], seconds=(batch_s / 4,))
        started = time.monotonic()
        extract(memory, StandIn(), tmp_path / f"{attempt}", workers=1)
        return time.monotonic() - started

    # One of several attempts: other work on the machine may keep one of them from it.
    assert any(seconds(attempt) < 0.8 * (2 * n_batches * batch_s) for attempt in range(5))


# -- the sample for calibration -----------------------------------------------------------------------------------------


def test_a_small_dataset_is_sampled_whole() -> None:
    images = [square(i) for i in range(10)]
    sample = sample_images(dataset_of(Memory(images)))
    assert (sample.shape, sample.dtype) == ((10, 3, 224, 224), torch.uint8)
    assert sample[:, :, 0, 0].tolist() == [[i, i, i] for i in range(10)]


@pytest.mark.parametrize("n_images", [255, 256, 257, 700])
def test_a_sample_is_spread_evenly_over_the_dataset(n_images: int) -> None:
    memory = Memory([square(1)] * n_images)
    assert len(sample_images(dataset_of(memory))) == min(n_images, SAMPLE_IMAGES) == len(set(memory.asked))
    assert (memory.asked[0], memory.asked[-1]) == (0, n_images - 1)
    assert np.ptp(np.diff(memory.asked)) <= 1


def test_a_sample_is_of_256_images_at_most() -> None:
    assert SAMPLE_IMAGES == 128


def test_unreadable_images_are_left_out_of_a_sample() -> None:
    sample = sample_images(dataset_of(Memory([UNREADABLE, square(1), b"", square(2)])))
    assert sample[:, 0, 0, 0].tolist() == [1, 2]


def test_a_sample_of_no_readable_image_is_an_error() -> None:
    with pytest.raises(HoarfrostError, match="memory: none of the 3 sampled images could be read"):
        sample_images(dataset_of(Memory([UNREADABLE] * 3)))
