"""Decoding in other processes: a decoder that crashes costs one image, and the next process is started."""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hoarfrost.features.decoding.windows import Window
from hoarfrost.features.encoder.registry import DEFAULT
from hoarfrost.features.errors import ImageDecodeError, Unreadable

if TYPE_CHECKING:
    import numpy.typing as npt

COMMAND = (sys.executable, "-P", "-m", "hoarfrost.features.decoding.decoder")
MOST_SECONDS = 120.0  # nothing takes so long; then the decoder hangs


class DecoderCrashError(ImageDecodeError):
    """A decoder ended its process, or did not end."""


@dataclass(frozen=True)
class ImageInfo:
    """What a file is, found by decoding it: see `images.OpenedImage`; `notes` say what was left out."""

    kind: tuple[str, str, int]
    size: tuple[int, int]
    notes: tuple[str, ...]


class _Process:
    """A process that decodes one image after another; see `decoder` for what is said."""

    def __init__(self) -> None:
        # Where this package was found, and nowhere else: the working folder may hold another of the same name.
        places = os.pathsep.join(place for place in sys.path if place)
        self._process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": places},
        )  # fmt: skip
        self._latest = b""
        self._is_late = False

    def ask(self, content: bytes, request: dict[str, Any], seconds: float) -> "tuple[dict[str, Any], bytes]":
        """Send a request, see `decoder`, and wait for the answer and its pixels, or a reason for none."""
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
            raise DecoderCrashError(Unreadable.CRASHED, self._end(seconds))
        self._latest = content
        if "error" in answer:
            raise ImageDecodeError(answer["kind"], text=answer["error"])
        return answer, payload

    def _give_up(self) -> None:
        self._is_late = True
        self._process.kill()

    def _end(self, seconds: float) -> str:
        """Return how the process ended."""
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


@contextmanager
def _a_process() -> Iterator[_Process]:
    """Yield a process, an idle one if there is; it is reused unless it crashed."""
    try:
        process = _idle.pop()  # lists are safe in threads
    except IndexError:
        process = _Process()
    try:
        yield process
    except DecoderCrashError:
        raise
    except ImageDecodeError:
        _idle.append(process)
        raise
    _idle.append(process)


def decode_isolated(
    content: bytes,
    frame: int,
    max_pixels: int,
    window: Window | None,
    *,
    size: int = DEFAULT.size,
    seconds: float | None = None,
) -> "npt.NDArray[np.uint8]":
    """Decode an image, or a frame of it (from 1), as `images.decode_pixels` does, in another process.

    Parameters
    ----------
    content : bytes
    frame : int
    max_pixels, window, size
        As `images.Decoding` has them.
    seconds : float, optional

    Raises
    ------
    DecoderCrashError
        If the process crashed, or did not end within `seconds`; it says how.
    ImageDecodeError
        If the image is unreadable.
    """
    with _a_process() as process:
        request = _request(frame, max_pixels, window, size, "pixels")
        answer, payload = process.ask(content, request, seconds or MOST_SECONDS)
    return np.frombuffer(payload, np.uint8).reshape(answer["shape"])


def inspect_isolated(
    content: bytes,
    frame: int,
    max_pixels: int,
    window: Window | None,
    room: "Callable[[int], AbstractContextManager[None]]",
    *,
    size: int = DEFAULT.size,
) -> ImageInfo:
    """Decode an image in another process, for what it is and whether it can be read; no pixels come back.

    Parameters
    ----------
    content, frame, max_pixels, window, size
        As for `decode_isolated`.
    room : callable
        Gives for a number of pixels what to wait for before they are decoded.

    Raises
    ------
    DecoderCrashError, ImageDecodeError
        As `decode_isolated`.
    """
    with _a_process() as process:
        header, _ = process.ask(content, _request(frame, max_pixels, window, size, "header"), MOST_SECONDS)
        with room(header["width"] * header["height"]):
            found, _ = process.ask(content, _request(frame, max_pixels, window, size, "check"), MOST_SECONDS)
    image_format, mode, bits = found["kind"]
    width, height = found["size"]
    return ImageInfo((image_format, mode, bits), (width, height), tuple(found["notes"]))


def _request(frame: int, max_pixels: int, window: Window | None, size: int, want: str) -> dict[str, Any]:
    place = None if window is None else [window.center, window.width]
    return {"frame": frame, "max_pixels": max_pixels, "window": place, "size": size, "want": want}


@atexit.register
def _close_idle() -> None:
    while _idle:
        _idle.pop().close()
