"""A decoder that crashes the process costs one image, and nothing that was committed."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import hoarfrost.features.decoding.images
import hoarfrost.features.decoding.isolated
import hoarfrost.features.decoding.quarantine
from hoarfrost.features.cache import verify
from hoarfrost.features.cache.store import part_paths
from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.decoding.budget import PixelBudget
from hoarfrost.features.decoding.formats import MAX_PIXELS, EncodedFrame
from hoarfrost.features.decoding.images import FIRST_FRAME, Decoding, decode_pixels
from hoarfrost.features.decoding.isolated import (
    DecoderCrashError,
    ImageInfo,
    decode_isolated,
    inspect_isolated,
)
from hoarfrost.features.decoding.looks import Seen, load_image, seen_in
from hoarfrost.features.decoding.quarantine import Quarantine, clear_notes, suspect_keys, suspect_keys_of_worker
from hoarfrost.features.decoding.views import View
from hoarfrost.features.decoding.windows import Window
from hoarfrost.features.errors import ImageDecodeError, Unreadable
from hoarfrost.features.extraction.loop import sample_images
from hoarfrost.features.fingerprint import image_key
from tests.support.builders import encode, picture
from tests.support.commands import ROOT
from tests.support.dicoms import PYDICOM_FILES, dicom, encoded, grey_values

PNG = encode(picture(30, 20))
# What a stand-in for a decoder begins with: it answers that it is ready, and gets a file.
READY = """
import sys
lines = [sys.stdin.buffer.readline() for _ in range(2)]
print('{"n_bytes": 0}', flush=True)
sys.stdin.buffer.readline()
"""
KEY = image_key(PNG)
PLAIN = Decoding()
USUAL = (View(224),)


def write_set(folder: Path, n: int = 12, crashing: int = 7) -> None:
    for i in range(n):
        size = (13, 13) if i == crashing else (16, 12)
        path = folder / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(*size, seed=i)))


def extract(folder: Path, cache: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            sys.executable, "-m", "tests.support.crashing", "extract", str(folder), "--cache", str(cache), "--weights",
            "random:0", "--device", "cpu", "--precision", "float32", "--batch-size", "2", "--workers", "1", "--json", *more,
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_after_a_crash_the_next_run_gets_past_the_file_and_later_ones_leave_it_alone(tmp_path: Path) -> None:
    folder, cache = tmp_path / "images", tmp_path / "c.h5"
    write_set(folder)
    crashed = extract(folder, cache)
    assert crashed.returncode == -signal.SIGSEGV, crashed.stderr
    n_committed = len(part_paths(cache))
    assert n_committed > 0
    assert (tmp_path / "c.h5.trying").exists()
    for _ in range(2):
        done = extract(folder, cache)
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert (summary["images"], summary["failed"]) == (12, 1)
        assert summary["errors"] == [["b/07.png", "its decoder crashed: SIGSEGV (in quarantine: c.h5.quarantine)"]]
        assert not (tmp_path / "c.h5.trying").exists()
    assert summary["forward_images"] == 0
    assert verify(cache).sound
    (folder / "b" / "07.png").write_bytes(encode(picture(16, 12, seed=7)))  # fixed: other bytes are another image
    assert json.loads(extract(folder, cache).stdout)["failed"] == 0


@pytest.mark.slow
def test_what_was_committed_before_the_crash_is_not_embedded_again(tmp_path: Path) -> None:
    folder, cache = tmp_path / "images", tmp_path / "c.h5"
    write_set(folder, n=40, crashing=39)
    assert extract(folder, cache).returncode == -signal.SIGSEGV
    summary = json.loads(extract(folder, cache).stdout)
    assert summary["reused"] > 0
    assert summary["reused"] + summary["embedded"] == 39


# -- the parts ----------------------------------------------------------------------------------------------------------


def leave_behind(cache: Path, *keys: bytes) -> None:
    cache.with_name(cache.name + ".trying").write_bytes(bytes(32) + b"".join(keys))


def crash(*_: object, **__: object) -> None:
    raise DecoderCrashError(Unreadable.CRASHED, "SIGABRT")


def test_image_being_decoded_is_in_the_notes_and_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def looking(*arguments: object) -> Seen:
        seen.append((tmp_path / "c.h5.trying").read_bytes())
        return seen_in(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(hoarfrost.features.decoding.quarantine, "seen_in", looking)
    with Quarantine(tmp_path / "c.h5", 2) as quarantine:
        quarantine.load(PNG, KEY, USUAL, PLAIN).looks[0]
        assert KEY in seen[0]
        assert (tmp_path / "c.h5.trying").read_bytes() == bytes(64)
        with pytest.raises(ImageDecodeError):
            quarantine.load(b"no image", image_key(b"no image"), USUAL, PLAIN)
        assert (tmp_path / "c.h5.trying").read_bytes() == bytes(64)
    assert not (tmp_path / "c.h5.trying").exists()


def test_suspect_that_is_sound_has_the_pixels_that_it_has_in_this_process(tmp_path: Path) -> None:
    leave_behind(tmp_path / "c.h5", KEY)
    with Quarantine(tmp_path / "c.h5", 1) as quarantine:
        assert torch.equal(quarantine.load(PNG, KEY, USUAL, PLAIN).looks[0], load_image(PNG))
    assert not quarantine.path.exists()
    assert not (tmp_path / "c.h5.trying").exists()


def test_suspects_that_were_not_reached_stay_suspects(tmp_path: Path) -> None:
    leave_behind(tmp_path / "c.h5", KEY)
    with Quarantine(tmp_path / "c.h5", 1):
        pass
    assert KEY in (tmp_path / "c.h5.trying").read_bytes()


def test_suspect_that_crashes_is_quarantined_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_behind(tmp_path / "c.h5", KEY)
    monkeypatch.setattr(hoarfrost.features.decoding.quarantine, "decoded", crash)
    for _ in range(2):
        with (
            Quarantine(tmp_path / "c.h5", 1) as quarantine,
            pytest.raises(ImageDecodeError, match="decoder crashed: SIGABRT"),
        ):
            quarantine.load(PNG, KEY, USUAL, PLAIN).looks[0]
    assert quarantine.path.read_text().splitlines() == [
        f"{KEY.hex()} its decoder crashed: SIGABRT (in quarantine: c.h5.quarantine)"
    ]
    quarantine.path.unlink()  # a user who fixed the decoder
    with Quarantine(tmp_path / "c.h5", 1) as quarantine:
        assert torch.equal(quarantine.load(PNG, KEY, USUAL, PLAIN).looks[0], load_image(PNG))


@pytest.mark.parametrize("garbage", [b"", b"x", bytes(33), b"\xff" * 100])
def test_damaged_notes_of_a_crash_are_ignored(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "c.h5.trying").write_bytes(garbage)
    (tmp_path / "c.h5.quarantine").write_bytes(garbage)
    with Quarantine(tmp_path / "c.h5", 1) as quarantine:
        assert quarantine.load(PNG, KEY, USUAL, PLAIN).looks[0].shape == (3, 224, 224)


@pytest.mark.parametrize("frame", [0, 2])
def test_process_of_its_own_decodes_frames_and_windows_alike(frame: int) -> None:
    pixels = np.stack([grey_values(bits=12, seed=i) for i in range(2)])
    content = encoded(dicom(pixels if frame else pixels[0], bits=12))
    image = EncodedFrame(content, b"", frame, 2) if frame else content
    wanted = decode_pixels(image, Decoding(window=Window(900, 700)))
    for _ in range(2):  # the second time the process has the file already
        assert np.array_equal(decode_isolated(content, frame, MAX_PIXELS, Window(900, 700)), wanted)


def test_process_of_its_own_reports_why_an_image_is_unreadable() -> None:
    with pytest.raises(ImageDecodeError, match="no image format recognised"):
        decode_isolated(b"no image", 0, MAX_PIXELS, None)
    with pytest.raises(ImageDecodeError, match="too many pixels: 600 are more than 10"):
        decode_isolated(PNG, 0, 10, None)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.abort()", "SIGABRT"),
        ("raise SystemExit(9)", "exit status 9"),
        ("while True: pass", "not finished after 2 s"),
        # Killed while it sent its answer: a line without an end, and pixels of which some are missing.
        ("""import os; print('{"shape": [20, 3', end="", flush=True); os.abort()""", "SIGABRT"),
        ("""import os; print('{"n_bytes": 9}\\n1234', end="", flush=True); os.abort()""", "SIGABRT"),
    ],
)
def test_process_of_its_own_that_crashes_or_hangs_is_named(
    monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    hoarfrost.features.decoding.isolated.close_idle()
    monkeypatch.setattr(hoarfrost.features.decoding.isolated, "COMMAND", (sys.executable, "-c", READY + code))
    monkeypatch.setattr(hoarfrost.features.decoding.isolated, "MOST_SECONDS", 2.0)
    if "while" in code:  # the others may take long to start on a busy machine
        monkeypatch.setattr(hoarfrost.features.decoding.isolated, "WALL_FACTOR", 1.0)
    with pytest.raises(DecoderCrashError, match=message):
        decode_isolated(PNG, 0, MAX_PIXELS, None)


def test_suspects_are_decoded_within_the_budget_of_pixels(tmp_path: Path) -> None:
    class Recorded(PixelBudget):
        most = 0

        @contextmanager
        def of(self, n_pixels: int) -> Iterator[None]:
            with super().of(n_pixels):
                self.most = max(self.most, self._n_taken)
                yield

    pngs = [encode(picture(30, 20, seed=seed)) for seed in range(6)]
    budget = Recorded(1300)  # two of 600
    leave_behind(tmp_path / "c.h5", *map(image_key, pngs))
    with Quarantine(tmp_path / "c.h5", 6) as quarantine, ThreadPoolExecutor(6) as pool:
        load = partial(quarantine.load, views=USUAL, decoding=Decoding(budget=budget))
        assert len(list(pool.map(load, pngs, map(image_key, pngs)))) == 6
    assert (budget.most, budget._n_taken) == (1200, 0)


def test_process_that_was_stopped_just_when_its_image_was_done_costs_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    hoarfrost.features.decoding.isolated.close_idle()
    wanted = decode_isolated(PNG, 0, MAX_PIXELS, None)
    (stopped,) = hoarfrost.features.decoding.isolated._idle
    monkeypatch.setattr(stopped._process, "kill", lambda: None)  # the signal takes a moment to arrive
    stopped.stop()
    assert np.array_equal(decode_isolated(PNG, 0, MAX_PIXELS, None), wanted)
    assert stopped not in hoarfrost.features.decoding.isolated._idle


def test_process_is_no_longer_busy_when_another_thread_may_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Else the first thread would take it out of those that a signal ends, while the second decodes in it.
    was_busy = []

    class Idle(list[object]):
        def append(self, process: object) -> None:
            was_busy.append(process in hoarfrost.features.decoding.isolated._busy)
            super().append(process)

    monkeypatch.setattr(hoarfrost.features.decoding.isolated, "_idle", Idle())
    decode_isolated(PNG, 0, MAX_PIXELS, None)
    with pytest.raises(ImageDecodeError):
        decode_isolated(PNG[:40], 0, MAX_PIXELS, None)
    assert was_busy == [False, False]
    hoarfrost.features.decoding.isolated.close_idle()


def test_process_that_was_killed_while_idle_costs_no_image() -> None:
    wanted = decode_isolated(PNG, 0, MAX_PIXELS, None)
    for process in hoarfrost.features.decoding.isolated._idle:
        process._process.kill()
        process._process.wait()
    assert np.array_equal(decode_isolated(PNG, 0, MAX_PIXELS, None), wanted)


@pytest.mark.slow
def test_image_that_crashes_its_decoder_is_listed_by_inspect(tmp_path: Path) -> None:
    write_set(tmp_path / "images")
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.support.crashing", "inspect", str(tmp_path / "images"), "--contact-sheet",
            str(tmp_path / "sheet.png"), "--json",
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["images"], found["errors"]) == (12, [["b/07.png", "its decoder crashed: SIGSEGV"]])
    assert (tmp_path / "sheet.png").stat().st_size > 0


@pytest.mark.slow
def test_image_that_crashes_its_decoder_is_skipped_in_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path)
    hoarfrost.features.decoding.isolated.close_idle()
    monkeypatch.setattr(
        hoarfrost.features.decoding.isolated, "COMMAND", (sys.executable, "-m", "tests.support.crashing")
    )
    try:
        assert sample_images(read_dataset(tmp_path)).shape == (11, 3, 224, 224)
    finally:
        hoarfrost.features.decoding.isolated.close_idle()


def test_process_of_its_own_finds_what_an_image_is_and_waits_for_room() -> None:
    waited_for = []

    def room(n_pixels: int) -> AbstractContextManager[None]:
        waited_for.append(n_pixels)
        return nullcontext()

    frames = [picture(30, 20, seed=i).quantize(8) for i in range(2)]
    gif = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert inspect_isolated(gif, 0, MAX_PIXELS, None, room) == ImageInfo(("GIF", "P", 8), (30, 20), (FIRST_FRAME,))
    assert waited_for == [600]
    with pytest.raises(ImageDecodeError, match="damaged or truncated image"):
        inspect_isolated(PNG[:-60], 0, MAX_PIXELS, None, room)


# Bytes of a DICOM file in lossless JPEG that end GDCM 3.2's process, found by mutating it.
CRASHES_GDCM = [
    {1353: 245, 1460: 206, 1591: 201}, {1373: 5, 1415: 203, 1474: 91}, {1353: 253, 1511: 140, 1606: 226},
]  # fmt: skip


def test_codec_that_is_known_to_crash_costs_one_image_and_not_the_process() -> None:
    sound = (PYDICOM_FILES / "SC_rgb_jpeg_gdcm.dcm").read_bytes()
    wanted = decode_pixels(sound)
    for changes in CRASHES_GDCM:
        damaged = bytes(changes.get(at, byte) for at, byte in enumerate(sound))
        # Another version of the codec may find the damage itself.
        with pytest.raises(
            ImageDecodeError, match="damaged or truncated DICOM pixels: (its decoder crashed: SIG|Unable to)"
        ):
            decode_pixels(damaged)
        assert np.array_equal(decode_pixels(sound), wanted)


def test_folder_where_files_cannot_be_mapped_is_used_without_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = hoarfrost.features.decoding.quarantine.mmap.mmap

    def refusing(number: int, n_bytes: int) -> object:
        if number >= 0:
            raise OSError(19, "No such device")
        return real(number, n_bytes)

    monkeypatch.setattr(hoarfrost.features.decoding.quarantine.mmap, "mmap", refusing)
    with Quarantine(tmp_path / "c.h5", 1) as quarantine:
        assert quarantine.load(PNG, KEY, USUAL, PLAIN).looks[0].shape == (3, 224, 224)
    assert "files cannot be mapped in this folder (No such device)" in caplog.text


# -- workers of a cluster -----------------------------------------------------------------------------------------------


def test_what_a_worker_left_behind_is_suspect_to_others_until_the_extraction_ends(tmp_path: Path) -> None:
    cache = tmp_path / "c.h5"
    (tmp_path / "c.h5.trying-dead").write_bytes(bytes(32) + KEY)
    assert suspect_keys_of_worker(cache, "dead") == suspect_keys(cache) == {KEY}
    assert suspect_keys_of_worker(cache, "host took it along") == set()
    with Quarantine(cache, 1, worker="alive") as quarantine:
        assert (tmp_path / "c.h5.trying-alive").exists()
        quarantine.suspect({KEY})
        assert torch.equal(quarantine.load(PNG, KEY, USUAL, PLAIN).looks[0], load_image(PNG))
        assert suspect_keys_of_worker(cache, "dead") == {KEY}  # the driver knows when it is decoded
    clear_notes(cache, set())
    assert not list(tmp_path.glob("*trying*"))


def test_what_another_worker_put_into_quarantine_is_not_tried_by_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hoarfrost.features.decoding.quarantine, "decoded", crash)
    with Quarantine(tmp_path / "c.h5", 1, worker="one") as one, Quarantine(tmp_path / "c.h5", 1, worker="two") as two:
        one.suspect({KEY})
        with pytest.raises(ImageDecodeError, match="SIGABRT"):
            one.load(PNG, KEY, USUAL, PLAIN)
        monkeypatch.undo()
        two.suspect({KEY})
        with pytest.raises(ImageDecodeError, match="SIGABRT"):
            two.load(PNG, KEY, USUAL, PLAIN)
    assert suspect_keys(tmp_path / "c.h5") == set()


def test_notes_of_workers_that_were_not_cleared_are_used_by_the_next_extraction(tmp_path: Path) -> None:
    cache, others = tmp_path / "c.h5", [bytes([i]) * 32 for i in (1, 2)]
    leave_behind(cache, KEY)
    for i, key in enumerate(others):
        (tmp_path / f"c.h5.trying-{i}").write_bytes(key)
    with Quarantine(cache, 1):
        pass
    assert [path.name for path in tmp_path.glob("*trying*")] == ["c.h5.trying"]
    assert suspect_keys(cache) == {KEY, *others}
    clear_notes(cache, {KEY})
    assert suspect_keys(cache) == {KEY}


def test_notes_that_a_full_disk_cannot_clear_stay_for_the_next_extraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "c.h5"
    (tmp_path / "c.h5.trying-dead").write_bytes(KEY)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    clear_notes(cache, {KEY})
    assert suspect_keys(cache) == {KEY}
