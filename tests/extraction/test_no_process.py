"""Where processes cannot decode, threads do, or an error names the way out; no image is unreadable for this."""

import errno
import os
import re
import sys
from pathlib import Path

import pytest
import torch

import hoarfrost.features.decoding.isolated
import hoarfrost.features.decoding.shared
import hoarfrost.features.devices
import hoarfrost.features.extraction.buffers
from hoarfrost.features.cache import CacheWriter
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.fingerprint import image_key
from tests.extraction.test_loop import Memory, extract, one_by_one
from tests.extraction.test_processes import CRASHING, IN_PROCESSES, PNGS
from tests.support.builders import encode, picture
from tests.support.caches import HEADER
from tests.support.standin import StandIn

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has memory that processes can share so"),
    pytest.mark.usefixtures("no_process_stays"),
]


@pytest.fixture
def auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two processes decode without being asked for, as beside a GPU."""
    monkeypatch.setattr("tests.extraction.test_loop.n_processes", lambda *_: 2)


@pytest.mark.usefixtures("auto")
@pytest.mark.parametrize("what", ["memfd_create", "posix_fallocate"])
def test_without_memory_to_share_threads_decode_and_a_message_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, what, fails)
    assert extract(Memory(PNGS), StandIn(), tmp_path).embeddings == one_by_one(PNGS)
    assert caplog.messages == [
        "No processes to decode in ([Errno 28] No space left on device). Continuing with threads, only slower."
    ]
    with pytest.raises(HoarfrostError, match="could be started .*No space left.* or use --decode threads"):
        IN_PROCESSES(Memory(PNGS), StandIn(), tmp_path)


@pytest.mark.usefixtures("auto")
def test_a_python_without_such_memory_decodes_in_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert extract(Memory(PNGS), StandIn(), tmp_path).embeddings == one_by_one(PNGS)
    assert "or this Python, lacks shared memory" in caplog.text


def cannot_open(self: object, name: str, path: str, n_bytes: int) -> None:  # noqa: ARG001 - the method's signature
    OPEN(self, name, "/nowhere", n_bytes)  # type: ignore[arg-type]


OPEN = hoarfrost.features.decoding.isolated.Process.open
NO_START = {  # reason: what prevents it
    "before it was ready: exit status 0": ("COMMAND", (sys.executable, "-c", "pass")),
    "No such file or directory: '/nowhere/python'": ("COMMAND", ("/nowhere/python",)),
    "No such file or directory)": ("Process.open", cannot_open),
}


@pytest.mark.usefixtures("new_processes", "auto")
@pytest.mark.parametrize("reason", NO_START)
def test_where_processes_cannot_start_threads_decode_or_an_error_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    what, replacement = NO_START[reason]
    monkeypatch.setattr(f"hoarfrost.features.decoding.isolated.{what}", replacement)
    found = extract(Memory(PNGS), StandIn(), tmp_path)
    assert (found.embeddings, found.errors) == (one_by_one(PNGS), {})
    [message] = caplog.messages
    assert message.startswith("No processes to decode in (")
    assert reason in message
    with pytest.raises(HoarfrostError, match="--decode processes: no process .* or use --decode threads") as raised:
        IN_PROCESSES(Memory(PNGS), StandIn(), tmp_path)
    assert reason in str(raised.value)


class Kills(StandIn):
    """Kills all processes that decode, once a batch is embedded, and lets no other start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch, self._has_killed = monkeypatch, False

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        isolated = hoarfrost.features.decoding.isolated
        if not self._has_killed:
            self._has_killed = True
            self._monkeypatch.setattr(isolated, "COMMAND", ("/nowhere/python",))
            for process in [*isolated._busy, *isolated._idle]:
                process._process.kill()
        return super().embed(images)


@pytest.mark.usefixtures("new_processes", "auto")
def test_where_killed_processes_cannot_be_replaced_no_image_is_recorded_as_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = [encode(picture(16, 12, seed=seed)) for seed in range(40)]
    monkeypatch.setattr(hoarfrost.features.decoding.isolated, "WAIT_SECONDS", 0.5)
    try:
        found = extract(Memory(images), Kills(monkeypatch), tmp_path)
        assert (found.embeddings, found.errors) == (one_by_one(images), {})
    except HoarfrostError as error:  # some were with the killed processes, and need one of their own
        left = re.match(
            r"Images that are not embedded: (\d+) of 40\. No process .* could be started .*nowhere", str(error)
        )
        assert left is not None
        with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
            assert len(writer.known) == 40 - int(left[1])
    assert [message.partition(" (")[0] for message in caplog.messages if "process" in message] == [
        "No processes to decode in"
    ]
    assert not (tmp_path / "c.h5.quarantine").exists()


@pytest.mark.usefixtures("new_processes")
def test_where_processes_were_asked_for_and_cannot_be_replaced_an_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [encode(picture(16, 12, seed=seed)) for seed in range(40)]
    monkeypatch.setattr(hoarfrost.features.decoding.isolated, "WAIT_SECONDS", 0.5)
    with pytest.raises(HoarfrostError, match="could be started .*nowhere"):
        IN_PROCESSES(Memory(images), Kills(monkeypatch), tmp_path)
    monkeypatch.undo()
    found = IN_PROCESSES(Memory(images), StandIn(), tmp_path)
    assert (found.embeddings, found.errors) == (one_by_one(images), {})


@pytest.mark.usefixtures("new_processes", "auto")
def test_suspects_that_no_process_can_decode_are_left_and_the_others_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [*PNGS[:5], CRASHING, *PNGS[5:]]
    (tmp_path / "c.h5.trying").write_bytes(b"".join(map(image_key, images[4:6])))
    monkeypatch.setattr(hoarfrost.features.decoding.isolated, "COMMAND", ("/nowhere/python",))
    with pytest.raises(HoarfrostError, match=r"not embedded: 2 of 11\. No process .* run the same command again"):
        extract(Memory(images), StandIn(), tmp_path)
    monkeypatch.undo()
    memory = Memory(images)
    assert extract(memory, StandIn(), tmp_path).embeddings == one_by_one(images)
