"""Where no process can be started to decode in, no image is to blame: nothing is recorded of it."""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hoarfrost.features.decoding.images
import hoarfrost.features.decoding.isolated
import hoarfrost.features.decoding.quarantine
from hoarfrost.features.decoding.budget import PixelBudget
from hoarfrost.features.decoding.formats import MAX_PIXELS
from hoarfrost.features.decoding.images import Decoding, decode_pixels
from hoarfrost.features.decoding.isolated import (
    DecoderStartError,
    decode_isolated,
)
from hoarfrost.features.decoding.quarantine import Quarantine, suspect_keys
from hoarfrost.features.decoding.views import View
from hoarfrost.features.errors import ImageDecodeError
from hoarfrost.features.fingerprint import image_key
from tests.support.builders import encode, picture
from tests.support.dicoms import PYDICOM_FILES

PNG = encode(picture(30, 20))
KEY = image_key(PNG)
USUAL = (View(224),)


def refuse(number: int) -> Callable[..., None]:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refused


def no_thread(*_: object, **__: object) -> None:
    raise RuntimeError("can't start new thread")


def no_memory(*_: object, **__: object) -> None:
    raise MemoryError


@pytest.fixture(params=["fork", "files", "memory", "threads", "interpreter", "import", "killed"])
def cannot_start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Let no process start to decode in, for one reason after another; return what is said of it."""
    isolated, sigkill = hoarfrost.features.decoding.isolated, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    replaced, message = {
        "fork": ((isolated.subprocess, "Popen", refuse(errno.EAGAIN)), "Resource temporarily unavailable"),
        "files": ((isolated.subprocess, "Popen", refuse(errno.EMFILE)), "Too many open files"),
        "memory": ((isolated.subprocess, "Popen", no_memory), "out of memory"),
        "threads": ((isolated.threading.Timer, "start", no_thread), "can't start new thread"),
        "interpreter": ((isolated, "COMMAND", ("/nowhere/python",)), "No such file or directory: '/nowhere/python'"),
        "import": (
            (isolated, "COMMAND", (sys.executable, "-c", "import nowhere")),
            "before it was ready: exit status 1",
        ),
        "killed": ((isolated, "COMMAND", (sys.executable, "-c", sigkill)), "before it was ready: SIGKILL"),
    }[request.param]
    isolated.close_idle()
    with monkeypatch.context() as patches:
        patches.setattr(*replaced)
        yield message
    isolated.close_idle()


def test_process_that_cannot_start_is_not_the_images_fault(tmp_path: Path, cannot_start: str) -> None:
    (tmp_path / "c.h5.trying").write_bytes(KEY)
    for _ in range(2):
        with Quarantine(tmp_path / "c.h5", 1) as quarantine, pytest.raises(DecoderStartError) as raised:
            quarantine.load(PNG, KEY, USUAL, Decoding())
        assert cannot_start in str(raised.value)
        assert str(raised.value).endswith("Then run the same command again.")
        assert not quarantine.path.exists()
        assert suspect_keys(tmp_path / "c.h5") == {KEY}  # tried by the next extraction


def test_file_that_needs_a_process_of_its_own_is_not_damaged_where_none_can_start(
    monkeypatch: pytest.MonkeyPatch, cannot_start: str
) -> None:
    monkeypatch.setattr(hoarfrost.features.decoding.images, "_is_slow", lambda *_: True)
    for content in (PNG, (PYDICOM_FILES / "SC_rgb_jpeg_gdcm.dcm").read_bytes()):
        with pytest.raises(DecoderStartError, match=re.escape(cannot_start)):
            decode_pixels(content)


def test_where_no_other_process_can_start_a_thread_waits_for_one_that_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    isolated = hoarfrost.features.decoding.isolated
    wanted = decode_isolated(PNG, 0, MAX_PIXELS, None)
    monkeypatch.setattr(isolated, "COMMAND", ("/nowhere/python",))
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(decode_isolated, PNG, 0, MAX_PIXELS, None) for _ in range(20)]
        assert all(np.array_equal(one.result(), wanted) for one in found)
    monkeypatch.setattr(isolated, "WAIT_SECONDS", 0.2)
    with isolated.a_process(), pytest.raises(DecoderStartError, match="nowhere"):
        decode_isolated(PNG, 0, MAX_PIXELS, None)
    isolated.close_idle()


@pytest.mark.parametrize("n_kills", [1, 2, 3])
def test_image_alone_is_tried_again_where_its_process_is_killed_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_kills: int
) -> None:
    isolated, asked = hoarfrost.features.decoding.isolated, []
    ask = isolated.Process.ask

    def killed(self: isolated.Process, content: bytes, request: dict[str, Any], seconds: float | None) -> object:
        if request["want"] == "pixels":
            asked.append(request)
            if len(asked) <= n_kills:
                self._process.kill()
                self._process.wait()
        return ask(self, content, request, seconds)

    monkeypatch.setattr(isolated.Process, "ask", killed)
    (tmp_path / "c.h5.trying").write_bytes(KEY)
    budget = PixelBudget(600)
    with Quarantine(tmp_path / "c.h5", 1) as quarantine:
        if n_kills < isolated.MOST_KILLS:
            assert quarantine.load(PNG, KEY, USUAL, Decoding(budget=budget)).looks[0].shape == (3, 224, 224)
        else:
            with pytest.raises(ImageDecodeError, match="its decoder crashed: SIGKILL"):
                quarantine.load(PNG, KEY, USUAL, Decoding(budget=budget))
        assert quarantine.path.exists() == (n_kills == isolated.MOST_KILLS)
    assert budget._n_taken == 0
    isolated.close_idle()
