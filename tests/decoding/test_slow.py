"""Images that may decode for minutes have one limit everywhere, which the file alone decides; signals act at once."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hoarfrost.features.decoding.isolated as isolated
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.decoding.formats import MAX_PIXELS
from hoarfrost.features.decoding.images import decode_pixels
from hoarfrost.features.decoding.isolated import DecoderCrashError, decode_isolated
from hoarfrost.features.decoding.quarantine import Quarantine
from hoarfrost.features.decoding.slow import is_slow
from hoarfrost.features.errors import ImageDecodeError
from hoarfrost.features.fingerprint import jpeg_short_side
from tests.support.commands import ROOT
from tests.support.slow_images import jpeg_of_scans

PNG = io.BytesIO()
Image.fromarray(np.full((20, 20), 7, np.uint8)).save(PNG, "PNG")


# The command line with a stand-in for the backbone, and another limit.
CODE = """
import runpy, sys
import hoarfrost.features.decoding.isolated as isolated
isolated.MOST_SECONDS = float(sys.argv.pop(1))
runpy.run_module("tests.support.standin", run_name="__main__", alter_sys=True)
"""
STANDIN = (sys.executable, "-c", CODE)


def encoded(kind: str, side: int = 64, **options: object) -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(values).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded("JPEG"), False),
        (encoded("JPEG", progressive=True), False),
        (encoded("JPEG", subsampling=0, quality=95), False),
        (encoded("JPEG2000"), False),
        (encoded("JPEG2000", tile_size=(32, 32), num_resolutions=3), False),
        (encoded("PNG"), False),
        (encoded("WEBP"), False),
        (encoded("BMP"), False),
        (jpeg_of_scans(20), False),
        (jpeg_of_scans(1000), True),
        (encoded("JPEG2000", 1100, tile_size=(8, 8), num_resolutions=1), True),
    ],
)
def test_only_files_of_a_slow_structure_leave_the_threads(content: bytes, expected: bool) -> None:
    with Image.open(io.BytesIO(content)) as image:
        assert is_slow(content, image.width * image.height) == expected


def test_slow_image_that_ends_in_time_has_the_pixels_of_any_other() -> None:
    content = jpeg_of_scans(400)
    with Image.open(io.BytesIO(content)) as image:
        image.draft("L", (jpeg_short_side(224),) * 2)
        assert np.array_equal(decode_pixels(content), np.asarray(image))


@pytest.fixture
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "MOST_SECONDS", 1.0)
    monkeypatch.setattr(isolated, "WALL_FACTOR", 120.0)  # a second of computing may take long on a busy machine


@pytest.mark.usefixtures("one_second")
def test_limit_is_the_same_in_a_thread_and_for_a_suspect(tmp_path: Path) -> None:
    content, reasons = jpeg_of_scans(20_000), []
    for is_suspect in (False, True):
        cache = tmp_path / f"{is_suspect}.h5"
        (tmp_path / f"{cache.name}.trying").write_bytes(bytes(range(32)) if is_suspect else b"")
        with Quarantine(cache, 1) as quarantine:
            from hoarfrost.features.decoding.images import Decoding
            from hoarfrost.features.decoding.views import View

            with pytest.raises(ImageDecodeError, match="not finished after 1 s") as caught:
                quarantine.load(content, bytes(range(32)), (View(224),), Decoding())
        reasons.append(str(caught.value).replace(cache.name, "cache.h5"))
        assert bytes(range(32)).hex() in (tmp_path / f"{cache.name}.quarantine").read_text()
    assert reasons[0] == reasons[1]


@pytest.mark.usefixtures("one_second")
def test_limit_counts_computing_so_that_a_busy_machine_changes_nothing() -> None:
    started = os.times()
    with pytest.raises(DecoderCrashError, match="not finished after 1 s"):
        decode_isolated(jpeg_of_scans(20_000), 0, MAX_PIXELS, None)
    isolated.close_idle()
    ended = os.times()
    assert 0.8 < ended.children_user + ended.children_system - started.children_user - started.children_system < 8


@pytest.mark.skipif(sys.platform != "linux", reason="the limits of Linux")
def test_decoder_writes_no_file_and_takes_no_endless_memory() -> None:
    code = """
from hoarfrost.features.decoding import limits
limits.limit(100, 1000, 1000)
try:
    open("x", "wb", buffering=0).write(b"1" * 10); raise SystemExit("wrote")
except OSError: pass
try:
    bytearray(9 << 30); raise SystemExit("took")
except MemoryError: pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/tmp")
    assert (done.returncode, done.stderr) == (0, "")


def children_of(pid: int) -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.add(int(path.parent.name))
        except (OSError, IndexError):
            continue
    return found


def ticks_of(pid: int) -> int:
    """Return how long a process has computed, in hundredths of a second."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])
    except OSError:  # it has just ended
        return 0


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def started_on_slow_images(
    tmp_path: Path, *command: str, seconds: float = 120.0
) -> tuple["subprocess.Popen[str]", set[int]]:
    """Start a command on a set with slow images; return when it decodes them."""
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "images" / label / f"{number}.png").write_bytes(encoded("PNG", 32 + number))
        (tmp_path / "images" / label / "slow.jpg").write_bytes(jpeg_of_scans(100_000, 2000 + 8 * (label == "b")))
    process = subprocess.Popen(
        [*STANDIN, str(seconds), "0", *command], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        decoders = children_of(process.pid)
        if any(ticks_of(pid) > 100 for pid in decoders):
            return process, decoders
        time.sleep(0.1)
    raise AssertionError(process.communicate())


def commands_on(tmp_path: Path) -> list[list[str]]:
    return [
        ["extract", str(tmp_path / "images"), "--cache", str(tmp_path / "cache.h5"), "--weights", "random:0"],
        ["inspect", str(tmp_path / "images")],
    ]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signal_ends_a_command_and_its_decoders_at_once(tmp_path: Path, number: int, sent: signal.Signals) -> None:
    process, decoders = started_on_slow_images(tmp_path, *commands_on(tmp_path)[number])
    at = time.monotonic()
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - at < 15  # an image takes a minute and more
    while any(is_running(pid) for pid in decoders):
        assert time.monotonic() - at < 30
        time.sleep(0.02)
    assert "Traceback" not in stderr
    if number == 0 and sent != signal.SIGKILL:
        assert "Interrupted; 12 of 14 images saved" in stderr
        assert not (tmp_path / "cache.h5.quarantine").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
def test_image_of_100_000_scans_is_the_same_row_whether_or_not_the_run_was_killed_in_it(tmp_path: Path) -> None:
    rows = []
    command = ["extract", str(tmp_path / "images"), "--weights", "random:0", "--json", "--max-bad", "1", "--cache"]
    process, _ = started_on_slow_images(tmp_path, *command, str(tmp_path / "killed.h5"))
    process.kill()
    process.communicate()
    for cache in (tmp_path / "killed.h5", tmp_path / "whole.h5"):
        done = subprocess.run([*STANDIN, "2", "0", *command, str(cache)], cwd=ROOT, text=True, capture_output=True)
        assert json.loads(done.stdout)["failed"] == 2, done.stderr
        with EmbeddingCache(cache) as opened:
            rows.append([error.replace(cache.name, "") for error in opened.dataset("images").errors])
    assert rows[0] == rows[1]
    assert sum("not finished after 2 s" in text for text in rows[0]) == 2
