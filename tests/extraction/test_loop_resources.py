"""The loop of an extraction: bytes that wait, memory, threads, and the compute path that is recorded."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hoarfrost.features.cache import CacheFile
from hoarfrost.features.cache.store import part_paths
from hoarfrost.features.errors import HoarfrostError, ImageDecodeError
from hoarfrost.features.processors import usable_cpus
from tests.extraction.test_loop import UNREADABLE, Content, CopiesAtStart, Memory, extract, one_by_one, square
from tests.support.commands import NumberOfThreads
from tests.support.standin import StandIn

# -- the budget of bytes that wait to be decoded ------------------------------------------------------------------------


def test_files_beyond_the_budget_are_read_again_and_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hoarfrost.features.extraction.reading.BYTES_AHEAD", 40)  # two images of 16 bytes
    memory = Memory([square(i) for i in range(24)])
    found = extract(memory, StandIn(), tmp_path)
    assert found.embeddings == one_by_one(memory.images)
    assert 24 < memory.n_read <= 48


def test_a_file_that_is_another_when_it_is_read_again_is_one_images_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Changing(Memory):
        def read(self, index: int) -> Content:
            super().read(index)
            return square(self.n_read if index == 3 else index)

    monkeypatch.setattr("hoarfrost.features.extraction.reading.BYTES_AHEAD", 0)
    found = extract(Changing([square(i) for i in range(8)]), StandIn(), tmp_path)
    assert found.errors == {3: "changed while it was read"}
    assert len(found.embeddings) == 7


# -- memory and threads -------------------------------------------------------------------------------------------------


def test_a_file_that_memory_does_not_hold_is_one_images_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class TooLarge(Memory):
        def read(self, index: int) -> Content:
            if index == 3 and (self.n_read > 3 or not is_read_again):
                raise MemoryError
            return super().read(index)

    for i, is_read_again in enumerate((False, True)):
        monkeypatch.setattr("hoarfrost.features.extraction.reading.BYTES_AHEAD", 0 if is_read_again else 1 << 20)
        found = extract(TooLarge([square(i) for i in range(8)]), StandIn(), tmp_path / str(i), workers=1)
        assert found.errors == {3: "not enough memory to read the file"}
        assert len(found.embeddings) == 7


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_system_that_opens_no_more_files_ends_the_work_and_makes_no_image_unreadable(
    tmp_path: Path, number: int
) -> None:
    class Full(Memory):
        def read(self, index: int) -> Content:
            if index == 5:
                raise OSError(number, os.strerror(number), "5.png")
            return super().read(index)

    images = [square(i) for i in range(8)]
    with pytest.raises(HoarfrostError, match=f"^5.png: cannot be opened: {os.strerror(number)}. Allow more open files"):
        extract(Full(images), StandIn(), tmp_path)
    assert extract(Memory(images), StandIn(), tmp_path).embeddings == one_by_one(images)


def test_a_system_that_starts_no_more_threads_ends_the_work_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(HoarfrostError, match=r"No more threads can be started. .* use fewer --workers"):
        extract(Memory([square(0)]), StandIn(), tmp_path)


def test_an_extraction_leaves_threads_to_come_and_this_one_their_number(
    tmp_path: Path, n_threads: NumberOfThreads
) -> None:
    n_threads(2)
    here, elsewhere = [], []

    class Counts(StandIn):
        def start(self, images: torch.Tensor) -> Callable[[], torch.Tensor]:
            other = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
            other.start()
            other.join()
            here.append(torch.get_num_threads())
            return super().start(images)

    extract(Memory([square(i) for i in range(40)]), Counts(), tmp_path)
    expected = min(2, usable_cpus())
    assert here == [expected] * 10
    assert elsewhere[-1] == expected  # not of the first: while a decoder starts, a thread may take its number
    assert torch.get_num_threads() == 2


# -- the compute path that is recorded ----------------------------------------------------------------------------------


class GivesCompiledCodeUp(CopiesAtStart):
    """Is out of memory at its third batch, and continues without compiled code, as a GPU does."""

    compute = "compiled"
    n_started = 0

    def start(self, images: torch.Tensor) -> Callable[[], torch.Tensor]:
        self.n_started += 1
        if self.n_started == 3:
            self.compute = "eager"
        return super().start(images)


def test_each_part_says_the_path_that_its_embeddings_took(tmp_path: Path) -> None:
    images = [*(square(i) for i in range(20)), UNREADABLE]
    with pytest.raises(ImageDecodeError, match="no image format"):
        extract(Memory(images), GivesCompiledCodeUp(), tmp_path, on_error="fail")
    parts = []
    for path in part_paths(tmp_path / "c.h5"):
        with CacheFile(path) as part:
            parts.append((part.header.compute, len(part.keys)))
    assert parts == [("compiled", 8), ("eager", 12)]
