"""Decoding in processes of their own: a decoder that crashes costs one image, and the next process is started."""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.errors import ImageDecodeError
from features.windows import Window

if TYPE_CHECKING:
    import numpy.typing as npt

COMMAND = (sys.executable, "-m", "features.decoder")
MOST_SECONDS = 120.0  # nothing takes so long; then the decoder hangs


class DecoderCrashError(Exception):
    """A decoder ended its process, or did not end."""


class _Process:
    """A process that decodes one image after another; see `features.decoder` for what is said."""

    def __init__(self) -> None:
        places = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": places},
        )  # fmt: skip
        self._latest = b""
        self._is_late = False

    def decode(self, content: bytes, request: dict[str, Any], seconds: float) -> "npt.NDArray[np.uint8]":
        """Send an image, and wait for its pixels or the reason why there are none."""
        is_there = content is self._latest  # frames of one file follow one another
        timer = threading.Timer(seconds, self._give_up)
        timer.start()
        try:
            sender, answers = self._process.stdin, self._process.stdout
            assert sender is not None
            assert answers is not None
            sender.write(json.dumps({**request, "n_bytes": None if is_there else len(content)}).encode() + b"\n")
            sender.write(b"" if is_there else content)
            sender.flush()
            answer = json.loads(answers.readline() or "{}")
            payload = answers.read(answer.get("n_bytes", 0))
        except BrokenPipeError:
            answer, payload = {}, b""
        finally:
            timer.cancel()
        if not answer or len(payload) < answer["n_bytes"]:
            raise DecoderCrashError(self._end(seconds))
        self._latest = content
        if answer["shape"] is None:
            raise ImageDecodeError(payload.decode("utf-8", "replace"))
        return np.frombuffer(payload, np.uint8).reshape(answer["shape"])

    def _give_up(self) -> None:
        self._is_late = True
        self._process.kill()

    def _end(self, seconds: float) -> str:
        """Say how the process ended."""
        self.close()
        if self._is_late:
            return f"no end within {seconds:.0f} s"
        status = self._process.returncode
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def close(self) -> None:
        """End the process, unless it has ended by itself."""
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:  # what was not sent is of no use to a process that is gone
                continue
        self._process.wait()


_idle: list[_Process] = []


def decoded_apart(
    content: bytes, frame: int, max_pixels: int, window: Window | None, *, seconds: float | None = None
) -> "npt.NDArray[np.uint8]":
    """Decode an image, or a frame of it (from 1), as `features.images.decode_pixels` does, in another process.

    Raises
    ------
    ImageDecodeError
        If the image is unreadable.
    DecoderCrashError
        If the process crashed, or did not end within `seconds`; it says how.
    """
    try:
        process = _idle.pop()  # lists are safe in threads
    except IndexError:
        process = _Process()
    request = {
        "frame": frame,
        "max_pixels": max_pixels,
        "window": None if window is None else [window.center, window.width],
    }
    try:
        pixels = process.decode(content, request, MOST_SECONDS if seconds is None else seconds)
    except ImageDecodeError:
        _idle.append(process)
        raise
    _idle.append(process)
    return pixels


@atexit.register
def _close_idle() -> None:
    while _idle:
        _idle.pop().close()
