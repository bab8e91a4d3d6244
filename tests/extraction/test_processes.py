"""Processes that decode into shared memory make the cache that threads make; crashes, signals and full memory do no harm."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hoarfrost.features.decoding.isolated
import hoarfrost.features.decoding.shared
import hoarfrost.features.devices
import hoarfrost.features.extraction.buffers
from hoarfrost.features.cache import CacheFile, PartWriter
from hoarfrost.features.cache.layout import Keys, Mask
from hoarfrost.features.decoding.budget import PixelBudget
from hoarfrost.features.decoding.images import Decoding
from hoarfrost.features.decoding.isolated import DecodingStoppedError, close_idle, resume_decoding, stop_decoding
from hoarfrost.features.decoding.shared import SharedMemory, WantedLooks, decode_looks, start_decoders
from hoarfrost.features.decoding.views import View
from hoarfrost.features.extraction.buffers import n_processes
from hoarfrost.features.extraction.extract import extract as extract_dataset
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.features.extraction.recipes import Recipe
from hoarfrost.features.facts import ImageFacts
from tests.extraction.test_loop import UNREADABLE, Content, Memory, extract, one_by_one, square
from tests.support.builders import encode, picture
from tests.support.commands import ROOT
from tests.support.dicoms import dicom, encoded, grey_values
from tests.support.standin import StandIn

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has memory that processes can share so"),
    pytest.mark.usefixtures("no_process_stays"),
]

PNGS: list[Content] = [encode(picture(16, 12, seed=seed)) for seed in range(10)]
CRASHING = encode(picture(13, 13))
IN_PROCESSES = partial(extract, decode="processes")


def of_all_kinds(folder: Path) -> Path:
    """Write images of all kinds that are decoded differently, and some that cannot be read."""
    frames = [picture(40, 30, seed=seed) for seed in range(3)]
    deep = Image.fromarray(np.arange(40 * 30, dtype=np.uint16).reshape(30, 40) * 50)
    files = {
        "a/colour.png": encode(picture()),
        "a/grey.png": encode(picture(seed=1).convert("L")),
        "a/deep.png": encode(deep),
        "a/transparent.png": encode(picture(seed=2).convert("RGBA")),
        "a/large.jpg": encode(picture(1000, 900, seed=3), "JPEG"),
        "a/copy.jpg": encode(picture(1000, 900, seed=3), "JPEG"),
        "b/grey.jpg": encode(picture(300, 200, seed=4).convert("L"), "JPEG"),
        "b/pages.tif": encode(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "b/animated.gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "b/frames.dcm": encoded(dicom(np.stack([grey_values(seed=seed) for seed in range(3)]), bits=12)),
        "b/cut.png": encode(picture())[:200],
        "b/empty.png": b"",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(cache: Path) -> list[object]:
    """Return all that a cache holds, embeddings by their bytes."""
    with CacheFile(cache) as file:
        _, table = file.tables.files("images", "datasets")
        rows = [file.keys.tobytes(), file.embeddings().tobytes(), file.row_sums.tobytes(), table.rows.tolist()]
        return [
            *rows,
            [*table.paths],
            table.sizes.tolist(),
            file.header.views,
            file.facts(np.arange(len(file.keys))).images(),
        ]


def test_cache_of_processes_is_that_of_threads_byte_by_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "backbone", lambda *_, **__: StandIn())
    images = of_all_kinds(tmp_path / "images")
    options = ExtractOptions(
        weights="random:0", device="cpu", precision="float32", views="224,448:pad:flip,224:affine=1", batch_size=8,
        max_bad=1.0, workers=2,
    )  # fmt: skip
    found = {}
    for decode in ("threads", "processes"):
        summary = extract_dataset(images, tmp_path / decode / "c.h5", options=replace(options, decode=decode))
        found[decode] = replace(summary, seconds=0, images_per_second=0, cache="")
    assert found["threads"] == found["processes"]
    assert found["threads"].failed == 2
    assert len(found["threads"].notes) == 1
    assert contents(tmp_path / "threads" / "c.h5") == contents(tmp_path / "processes" / "c.h5")
    assert not hoarfrost.features.decoding.isolated._idle  # each would hold 300 MB


MIXED: list[Content] = [
    *PNGS[:5], UNREADABLE, square(7), np.full((5, 4, 3), (1, 2, 3), np.uint8), PNGS[2], b"", *PNGS[5:], CRASHING, UNREADABLE,
]  # fmt: skip


@pytest.mark.parametrize("workers", [1, 3])
def test_any_mixture_gives_what_threads_give(tmp_path: Path, workers: int) -> None:
    found = {
        decode: extract(Memory(MIXED), StandIn(), tmp_path / decode, decode=decode, workers=workers)
        for decode in ("threads", "processes")
    }
    assert replace(found["processes"], progress=[]) == replace(found["threads"], progress=[])
    assert found["processes"].embeddings == one_by_one(MIXED)


def test_files_beyond_the_budget_of_bytes_are_decoded_by_processes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hoarfrost.features.extraction.reading.BYTES_AHEAD", 0)
    monkeypatch.setattr("hoarfrost.features.decoding.quarantine.seen_in", None)  # of the threads
    memory = Memory(PNGS)
    assert IN_PROCESSES(memory, StandIn(), tmp_path).embeddings == one_by_one(PNGS)
    assert memory.n_read == 20


def test_images_larger_than_a_process_may_decode_wait_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hoarfrost.features.extraction.buffers.PIXELS_AT_ONCE", 300)  # a share is 75, an image 192
    images = [*PNGS, encode(picture(5, 4))]
    assert IN_PROCESSES(Memory(images), StandIn(), tmp_path).embeddings == one_by_one(images)


@pytest.mark.parametrize("kills", [False, True])
def test_large_images_may_take_the_whole_budget_of_pixels_which_killed_processes_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: bool
) -> None:
    taken: list[int] = []
    budgets: list[PixelBudget] = []

    class Recorded(PixelBudget):
        def __init__(self, n_pixels: int) -> None:
            super().__init__(n_pixels)
            budgets.append(self)

        @contextmanager
        def of(self, n_pixels: int) -> Iterator[None]:
            with super().of(n_pixels):
                taken.append(self._n_taken)
                if kills and len(taken) == 5:
                    for process in list(hoarfrost.features.decoding.isolated._busy):
                        process._process.kill()
                time.sleep(0.05)
                yield

    monkeypatch.setattr("hoarfrost.features.extraction.buffers.PixelBudget", Recorded)
    monkeypatch.setattr("hoarfrost.features.extraction.buffers.PIXELS_AT_ONCE", 400)  # a share is 100, an image 192
    assert IN_PROCESSES(Memory(PNGS), StandIn(), tmp_path).embeddings == one_by_one(PNGS)
    assert 192 * 2 <= max(taken) <= 400
    assert [budget._n_taken for budget in budgets] == [0]


# -- crashes ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("new_processes")
def test_a_process_that_crashes_costs_one_image_which_is_in_quarantine_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        hoarfrost.features.decoding.isolated, "COMMAND", (sys.executable, "-m", "tests.support.crashing")
    )
    monkeypatch.chdir(ROOT)
    images = [*PNGS[:5], CRASHING, *PNGS[5:]]
    reason = "its decoder crashed: SIGSEGV (in quarantine: c.h5.quarantine)"
    for _ in range(2):
        found = IN_PROCESSES(Memory(images), StandIn(), tmp_path, batch_size=16)
        assert found.errors == {5: reason}
        assert found.embeddings == {i: value for i, value in one_by_one(images).items() if i != 5}
    assert (tmp_path / "c.h5.quarantine").read_text().count("\n") == 1
    assert not (tmp_path / "c.h5.trying").exists()


@pytest.mark.usefixtures("new_processes")
def test_processes_that_something_kills_cost_no_image(tmp_path: Path) -> None:
    class Kills(StandIn):
        n_batches = 0

        def embed(self, images: torch.Tensor) -> torch.Tensor:
            self.n_batches += 1
            for process in list(hoarfrost.features.decoding.isolated._busy if self.n_batches == 3 else ()):
                process._process.kill()
            return super().embed(images)

    images = [encode(picture(16, 12, seed=seed)) for seed in range(30)]
    assert IN_PROCESSES(Memory(images), Kills(), tmp_path).embeddings == one_by_one(images)


# -- how many, and their memory ---------------------------------------------------------------------------------------


def test_answers_of_many_images_do_not_fill_the_pipe(tmp_path: Path) -> None:
    images: list[Content] = [encode(picture(8, 8, seed=seed)) for seed in range(700)]
    found = IN_PROCESSES(Memory(images), StandIn(), tmp_path, batch_size=700, workers=1)
    assert found.embeddings == one_by_one(images)


@pytest.mark.usefixtures("new_processes")
def test_large_shared_memory_leaves_room_to_decode() -> None:
    close_idle()
    memory = SharedMemory(1 << 20, pinned=False)
    os.truncate(memory.path, 12 << 30)  # nothing of it is written
    memory.n_bytes = 12 << 30
    start_decoders(1, memory)
    wanted = WantedLooks(encode(picture(16, 12)), b"", (View(32),), [0])
    (found,) = decode_looks([wanted], memory, Decoding(max_pixels=1_000_000, size=32), 1_000_000)
    assert isinstance(found, ImageFacts)


@pytest.mark.parametrize(
    ("decode", "device", "workers", "n_images", "expected"),
    [
        ("auto", "cuda", 16, 20_000, 16),
        ("auto", "cuda", 16, 9_999, 0),  # too few to repay the start
        ("auto", "cuda", 4, 20_000, 0),  # threads in one interpreter use as many
        ("auto", "cpu", 16, 20_000, 0),  # the network uses the CPUs
        ("processes", "cpu", 2, 1, 2),
        ("threads", "cuda", 16, 20_000, 0),
    ],
)
def test_processes_decode_where_they_pay(
    monkeypatch: pytest.MonkeyPatch, decode: str, device: str, workers: int, n_images: int, expected: int
) -> None:
    monkeypatch.setattr(hoarfrost.features.extraction.buffers, "usable_memory", lambda: float(128 << 30))
    assert n_processes(ExtractOptions(decode=decode, workers=workers), device, n_images) == expected


def test_processes_take_a_quarter_of_the_memory_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    for n_gb, expected in ((64, 32), (8, 6), (4, 0)):
        monkeypatch.setattr(hoarfrost.features.extraction.buffers, "usable_memory", lambda n=n_gb: float(n << 30))
        assert n_processes(ExtractOptions(workers=32), "cuda", 20_000) == expected


@pytest.mark.parametrize("status", [0, 2])
def test_memory_beside_a_gpu_is_pinned_until_it_is_gone_or_a_message_says_that_it_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    done = []

    class Runtime:
        def cudaHostRegister(self, address: int, n_bytes: int, _: int) -> int:  # noqa: N802 - CUDA's name
            done.append(("pinned", address, n_bytes))
            return status

        def cudaHostUnregister(self, address: int) -> int:  # noqa: N802 - CUDA's name
            done.append(("unpinned", address))
            return 0

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(hoarfrost.features.decoding.shared.torch, "zeros", lambda *_, **__: None)
    hoarfrost.features.devices.warn_unpinned.cache_clear()
    memory = SharedMemory(4096, pinned=True)
    [tensors] = memory.split({64: (1, 64, 64)}, 1)
    address = tensors[64].data_ptr()
    assert memory.offset(tensors[64]) == 0
    del memory
    assert done == [("pinned", address, 4096), ("unpinned", address)][: 1 if status else 2]
    assert [message.partition(" (")[0] for message in caplog.messages] == ["No more memory can be pinned"] * bool(
        status
    )
    hoarfrost.features.devices.warn_unpinned.cache_clear()


# -- signals ------------------------------------------------------------------------------------------------------------


def test_stopping_leaves_images_for_the_next_time_and_starts_no_process(tmp_path: Path) -> None:
    stop_decoding()
    n_busy = len(hoarfrost.features.decoding.isolated._idle)
    with pytest.raises(DecodingStoppedError), hoarfrost.features.decoding.isolated.a_process():
        pass
    assert len(hoarfrost.features.decoding.isolated._idle) == n_busy
    resume_decoding()
    assert IN_PROCESSES(Memory(PNGS), StandIn(), tmp_path).embeddings == one_by_one(PNGS)


def write_many(folder: Path, n: int = 400) -> Path:
    for i in range(n):
        path = folder / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(16, 12, seed=i)))
    return folder


def children_of(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def running(pids: list[int]) -> list[int]:
    return [
        pid
        for pid in pids
        if Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    ]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_extraction_whatever_ends_it(tmp_path: Path, sent: signal.Signals) -> None:
    images, cache = write_many(tmp_path / "images"), tmp_path / "c.h5"
    command = [
        sys.executable, "-m", "tests.support.standin", "0.05", "extract", str(images), "--cache", str(cache), "--weights",
        "random:0", "--device", "cpu", "--precision", "float32", "--batch-size", "4", "--workers", "2", "--decode",
        "processes",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, process_group=0) as process:
        deadline = time.monotonic() + 60
        while not any(tmp_path.glob("c.h5.parts/part-*")):  # it decodes
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        decoders = children_of(process.pid)
        assert len(decoders) >= 2
        if sent is signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, sent)  # as a terminal does: to the decoders too
        said = process.communicate()[1]
    if sent is signal.SIGINT:
        assert process.returncode == 1
        assert "Interrupted" in said
    while running(decoders):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not (tmp_path / "c.h5.quarantine").exists()


# -- look-ups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decode", ["threads", "processes"])
def test_the_keys_of_a_tasks_files_are_looked_up_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decode: str
) -> None:
    asked: list[int] = []
    contain = PartWriter.contain

    def counted(self: PartWriter, keys: Keys) -> Mask:
        asked.append(len(keys))
        return contain(self, keys)

    monkeypatch.setattr(PartWriter, "contain", counted)
    extract(Memory([square(i) for i in range(64)]), StandIn(), tmp_path, batch_size=32, decode=decode)
    assert asked == [{"threads": 4, "processes": 16}[decode]] * {"threads": 16, "processes": 4}[decode]
