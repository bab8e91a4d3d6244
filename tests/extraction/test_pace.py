"""Reading and decoding are timed: files that are slow to arrive are read by more threads, and other files are not."""

import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hoarfrost.features.decoding.quarantine import Quarantine
from hoarfrost.features.encoder.backbone.compiling import Supply
from hoarfrost.features.extraction import pace as pace_module
from hoarfrost.features.extraction.extract import extract as extract_dataset
from hoarfrost.features.extraction.pace import READERS_THAT_WAIT, Pace, Readers
from hoarfrost.features.extraction.plan import ExtractOptions
from tests.extraction.test_extract import write_images
from tests.extraction.test_loop import Content, Memory, extract, one_by_one, square
from tests.support.standin import StandIn

SLEEP_S = 0.02  # a read over a network


@dataclass
class SlowDisk(Memory):
    """Counts how many files are read at the same time."""

    n_now: int = 0
    n_most: int = 0
    counting: threading.Lock = field(default_factory=threading.Lock)

    def read(self, index: int) -> Content:
        with self.counting:
            self.n_now += 1
            self.n_most = max(self.n_most, self.n_now)
        try:
            return super().read(index)
        finally:
            with self.counting:
                self.n_now -= 1


def seconds(folder: Path, memory: Memory) -> float:
    started = time.perf_counter()
    found = extract(memory, StandIn(), folder, batch_size=32)
    took = time.perf_counter() - started
    assert found.embeddings == one_by_one(memory.images)
    return took


def test_files_of_a_slow_disk_are_read_by_many_threads_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = [square(i) for i in range(256)]
    ahead = SlowDisk(images, [SLEEP_S])
    with_more = seconds(tmp_path / "more", ahead)
    assert 2 < ahead.n_most <= READERS_THAT_WAIT + 2  # the first two finish what they were given
    monkeypatch.setattr(pace_module, "SLOW_READ_S", 1e9)
    before = SlowDisk(images, [SLEEP_S])
    without = seconds(tmp_path / "before", before)
    assert before.n_most == 2
    assert without >= 256 / 2 * SLEEP_S
    assert with_more < without  # 0.45 of it on a machine that does little else


def test_files_that_are_read_fast_are_read_by_as_many_threads_as_decode(tmp_path: Path) -> None:
    memory = SlowDisk([square(i) for i in range(128)])
    seconds(tmp_path, memory)
    assert memory.n_most <= 2


@pytest.mark.parametrize(
    ("read_s", "decode_s", "n_readers"),
    [(0.02, 0.001, READERS_THAT_WAIT), (0.02, 0.03, 4), (0.004, 0.001, 4), (0.0, 0.0, 4)],
)
def test_more_threads_read_where_reading_waits_and_bounds_the_rest(
    read_s: float, decode_s: float, n_readers: int
) -> None:
    pace = Pace(4)
    for timed, mean_s in ((pace._read, read_s), (pace._decode, decode_s)):
        timed.seconds, timed.n_images = mean_s * 10, 10
    readers = Readers(pace)
    assert readers.threads()._max_workers == pace.n_readers == n_readers
    readers.shutdown(wait=True, cancel_futures=True)
    supply = pace.supply()
    assert (supply.read_s, supply.decode_s) == (read_s / n_readers, decode_s / 4)


def test_whether_compiling_pays_is_asked_with_the_times_of_each_look(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[int, Supply]] = []
    monkeypatch.setattr(
        "hoarfrost.features.encoder.backbone.choose_compute",
        lambda _, n_looks, **given: asked.append((n_looks, given["supply"])),
    )
    decoding = Quarantine.load

    def slow(*arguments: Any) -> Any:
        time.sleep(0.1)
        return decoding(*arguments)

    monkeypatch.setattr(Quarantine, "load", slow)
    write_images(tmp_path / "images", 4)
    options = ExtractOptions(weights="random:0", device="cpu", precision="float32", views="224,224:flip", workers=1)
    extract_dataset(tmp_path / "images", tmp_path / "c.h5", options=options)
    ((n_looks, supply),) = asked
    assert n_looks == 8  # 4 images, two looks at each
    assert supply.decode_s >= 0.1 / 2
    assert supply.read_s > 0


def test_a_pace_is_the_mean_of_what_was_timed_and_unknown_before() -> None:
    pace = Pace(2, is_remote=True)
    assert (pace.supply().read_s, pace.supply().decode_s, pace.n_readers) == (0, 0, READERS_THAT_WAIT)

    def fail() -> None:
        time.sleep(0.01)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        pace.reading(fail)
    assert [pace.decoding(partial(time.sleep, seconds)) for seconds in (0.01, 0.03)] == [None, None]
    assert 0.01 <= pace.supply().read_s * READERS_THAT_WAIT < 1
    assert 0.02 <= pace.supply().decode_s * 2 < 1
