"""Decoding in other processes: a decoder that crashes costs one image, and the next process is started.

They decode what is suspected to crash, and, beside a GPU, everything: this process's threads share one interpreter.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from hoarfrost.features.decoding.windows import Window
from hoarfrost.features.encoder.registry import DEFAULT
from hoarfrost.features.errors import HoarfrostError, ImageDecodeError, Unreadable
from hoarfrost.features.facts import FileHeader

if TYPE_CHECKING:
    import numpy.typing as npt

COMMAND = (sys.executable, "-P", "-m", "hoarfrost.features.decoding.decoder")
MOST_SECONDS = (
    120.0  # of computing: no image takes as long. Counted by the system, so that a busy machine changes nothing
)
WALL_FACTOR = 5.0  # so many times as long may pass: then the decoder hangs without computing
MOST_KILLS = 3  # of decoders that had one image alone; then it may be the image that takes too much memory
WAIT_SECONDS, PAUSE_SECONDS = (
    10.0,
    0.1,
)  # for a process that is busy, where no other can be started; between looks at them

PIPE_BYTES = 256 << 10  # kept until so many are sent at once: each call takes this process's interpreter again
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class DecoderCrashError(ImageDecodeError):
    """A decoder crashed or hung."""


class DecoderKilledError(DecoderCrashError):
    """Something else killed the decoder: the system, for lack of memory, or a person."""


class DecodingStoppedError(HoarfrostError):
    """A signal, or a client that left, ended the decoder: nothing is known of the image."""


class DecoderStartError(DecodingStoppedError):
    """No process could be started to decode in, for a reason that is not the image's: nothing is known of the image."""

    def __init__(self, reason: object) -> None:
        super().__init__(
            f"No process to decode images in could be started ({reason}). Free memory, or allow more processes and open "
            "files (see ulimit -a). Then run the same command again."
        )
        self.reason = str(reason)


@dataclass(frozen=True)
class ImageInfo:
    """What decoding a file showed: see `images.OpenedImage`; `notes` name what was skipped; masks have two values."""

    kind: tuple[str, str, int]
    size: tuple[int, int]
    notes: tuple[str, ...]
    has_two_values: bool = False


class Process:
    """A process that decodes one image after another; `decoder` describes requests and answers."""

    def __init__(self) -> None:
        # Only where this package was found: the working folder may contain another package of the same name.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **_ONE_THREAD}
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        # From a thread that does not end: on Linux a decoder ends with the thread that started it.
        try:
            starting = _starter(os.getpid()).submit(
                lambda: subprocess.Popen(
                    COMMAND, bufsize=PIPE_BYTES, stdin=pipe, stdout=pipe, stderr=nowhere, env=environment
                )
            )
            self._process = starting.result()
        except (OSError, RuntimeError, MemoryError) as error:  # RuntimeError: no thread could be started
            raise DecoderStartError(_reason(error)) from error
        self._is_ready = False
        self._latest = b""
        self._memory = ""  # the name of what it has open
        self._is_late = False
        self._is_stopped = False

    def ask(self, content: bytes, request: dict[str, Any], seconds: float | None) -> "tuple[dict[str, Any], bytes]":
        """Send a request; return the answer and its pixels, or raise the reason why there are none."""
        ((answer, payload),) = self.ask_all([(content, request)], seconds)
        if "error" in answer:
            raise ImageDecodeError(answer["kind"], text=answer["error"])
        return answer, payload

    def ask_all(
        self, requests: Sequence[tuple[bytes, dict[str, Any]]], seconds: float | None
    ) -> "list[tuple[dict[str, Any], bytes]]":
        """Send requests, each with a file's bytes; return the answers and their pixels, or raise how the process ended."""
        self.wait_until_ready()
        return self._exchange(requests, seconds)

    def wait_until_ready(self) -> None:
        """Wait until the process has loaded what it needs; raise DecoderStartError if it ends before."""
        if not self._is_ready:
            self._exchange([(b"", {"want": "nothing"})], None)
            self._is_ready = True

    def _exchange(
        self, requests: Sequence[tuple[bytes, dict[str, Any]]], seconds: float | None
    ) -> "list[tuple[dict[str, Any], bytes]]":
        computing = seconds or MOST_SECONDS
        timer = threading.Timer(seconds or WALL_FACTOR * MOST_SECONDS, self._time_out)
        try:
            timer.start()
        except RuntimeError as error:  # no more threads
            raise DecoderStartError(_reason(error)) from error
        try:
            self._send(requests, computing)
            return [self._receive() for _ in requests]
        except (BrokenPipeError, EOFError):
            ended = self._end(computing)
            if self._is_stopped:
                raise DecodingStoppedError(ended) from None
            if not self._is_ready:
                raise DecoderStartError(f"it ended before it was ready: {ended}") from None
            is_killed = ended == "SIGKILL"  # no decoder does that to itself
            raise (DecoderKilledError if is_killed else DecoderCrashError)(Unreadable.CRASHED, ended) from None
        finally:
            timer.cancel()

    def _send(self, requests: Sequence[tuple[bytes, dict[str, Any]]], computing: float) -> None:
        sender = self._process.stdin
        assert sender is not None
        for content, request in requests:
            is_sent = content is self._latest  # frames of one file follow one another
            line = {**request, "seconds": computing, "n_bytes": None if is_sent else len(content)}
            sender.write(json.dumps(line).encode() + b"\n")
            sender.write(b"" if is_sent else content)
            self._latest = content
        sender.write(b"\n")
        sender.flush()

    def _receive(self) -> "tuple[dict[str, Any], bytes]":
        answers = self._process.stdout
        assert answers is not None
        line = answers.readline()
        if not line.endswith(b"\n"):  # it was killed, perhaps in the middle of an answer
            raise EOFError
        answer = json.loads(line)
        payload = answers.read(answer["n_bytes"])
        if len(payload) < answer["n_bytes"]:
            raise EOFError
        return answer, payload

    def open(self, name: str, path: str, n_bytes: int) -> None:
        """Let it write into memory at a path, unless it has what is named so; raise DecoderStartError if it cannot."""
        if self._memory == name:
            return
        try:
            self.ask(b"", {"want": "memory", "path": path, "size": n_bytes}, None)
        except ImageDecodeError as error:
            raise DecoderStartError(error) from error
        self._memory, self._is_ready = name, False  # it loads torch now

    @property
    def has_ended(self) -> bool:
        """Whether it decodes nothing more."""
        # Stopped just when its image was done: it may still run for a moment.
        return self._is_stopped or self._process.poll() is not None

    def _time_out(self) -> None:
        self._is_late = True
        self._process.kill()

    def stop(self) -> None:
        """End the process in the middle of an image; `ask` then raises DecodingStoppedError."""
        self._is_stopped = True
        self._process.kill()

    def _end(self, seconds: float) -> str:
        """Wait for the process to end; return how it ended."""
        self.close()
        status = self._process.returncode
        if self._is_late or status == -getattr(signal, "SIGXCPU", 0):
            return f"not finished after {seconds:.0f} s"
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def close(self) -> None:
        """End the process, if it still runs."""
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):  # what was not sent is of no use to a process that has ended
                if pipe is not None:
                    pipe.close()
        self._process.wait()


class Cancellation:
    """Lets one thread end what another one decodes."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._is_cancelled = False
        self._changing = threading.Lock()

    def attach(self, process: Process | None) -> None:
        """Name the process at work; None once it is done."""
        with self._changing:
            self._process = process
            if self._is_cancelled and process is not None:
                process.stop()

    def cancel(self) -> None:
        """End the process at work, or the next one; none if all is done."""
        with self._changing:
            self._is_cancelled = True
            if self._process is not None:
                self._process.stop()


_idle: list[Process] = []  # append and pop are safe in threads
_busy: set[Process] = set()
_stopped = threading.Event()


def _reason(error: Exception) -> str:
    return str(error) or "out of memory"  # a MemoryError has no text


@lru_cache
def _starter(pid: int) -> ThreadPoolExecutor:  # noqa: ARG001 - a forked process needs its own
    return ThreadPoolExecutor(1, "decoders", _block_stop_signals)


def _block_stop_signals() -> None:
    """Block in this thread, and so in decoders, what a terminal or a queue sends to all processes: this one ends them."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))


def stop_decoding() -> None:
    """End the decoders that are at work, and start none: from a signal's handler, until `resume_decoding`."""
    _stopped.set()
    for process in list(_busy):
        process.stop()


def resume_decoding() -> None:
    """Let images be decoded again."""
    _stopped.clear()


def start_idle(n: int) -> None:
    """Start processes side by side, until so many are idle and ready; raise DecoderStartError if that is not possible."""
    started: list[Process] = []
    try:
        while len(_idle) + len(started) < n:
            started.append(Process())
        for process in started:
            process.wait_until_ready()
    finally:
        _idle.extend(started)


@contextmanager
def a_process(cancellation: Cancellation | None = None) -> Iterator[Process]:
    """Yield an idle process, or a new one; it is reused unless it crashed.

    If none can be started, wait until another thread's is idle; not for ever, as that thread may wait for this one. Raise
    DecoderStartError if there is none then.
    """
    cancellation, deadline = cancellation or Cancellation(), time.monotonic() + WAIT_SECONDS
    with ExitStack() as stack:
        while True:
            try:
                process = stack.enter_context(_used(cancellation))
                break
            except DecoderStartError:
                if not (_busy or _idle) or time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE_SECONDS)
        yield process


@contextmanager
def _used(cancellation: Cancellation) -> Iterator[Process]:
    if _stopped.is_set():
        raise DecodingStoppedError("no decoder is started")
    try:
        while (process := _idle.pop()).has_ended:  # ended while idle: no image is to blame
            process.close()
    except IndexError:
        process = Process()
    _busy.add(process)
    is_usable = False
    try:
        cancellation.attach(process)
        if _stopped.is_set():
            process.stop()
        process.wait_until_ready()
        yield process
        is_usable = True
    except ImageDecodeError as error:
        is_usable = not isinstance(error, DecoderCrashError)
        raise
    finally:
        cancellation.attach(None)
        _busy.discard(process)  # first: as soon as it is idle, another thread may make it busy
        if is_usable:
            _idle.append(process)
        else:
            process.stop()
            process.close()


def decode_isolated(
    content: bytes, frame: int, max_pixels: int, window: Window | None, *, size: int = DEFAULT.size
) -> "npt.NDArray[np.uint8]":
    """Return an image's pixels, decoded in another process; see `decode_with_header`."""
    return decode_with_header(content, frame, max_pixels, window, size=size)[0]


def decode_with_header(
    content: bytes,
    frame: int,
    max_pixels: int,
    window: Window | None,
    *,
    size: int = DEFAULT.size,
    seconds: float | None = None,
    cancellation: Cancellation | None = None,
) -> "tuple[npt.NDArray[np.uint8], FileHeader]":
    """Return an image's pixels, decoded in another process as `images.decode_pixels` does, and its file's header.

    `content` and `frame` are as `formats.parts` returns them, the rest as in `images.Decoding`. A decoder that has not
    finished after `seconds` is ended; by default, after MOST_SECONDS of computing.

    Raises
    ------
    DecoderCrashError
        If the process crashed or hung.
    ImageDecodeError
        If the image is unreadable.
    DecodingStoppedError
        If `stop_decoding` was called, or `cancellation` was cancelled; DecoderStartError if no process could be started.
    """
    with decoded(content, frame, max_pixels, window, size=size, seconds=seconds, cancellation=cancellation) as found:
        return found


@contextmanager
def decoded(
    content: bytes,
    frame: int,
    max_pixels: int,
    window: Window | None,
    room: "Callable[[int], AbstractContextManager[None]] | None" = None,
    *,
    size: int = DEFAULT.size,
    seconds: float | None = None,
    cancellation: Cancellation | None = None,
) -> "Iterator[tuple[npt.NDArray[np.uint8], FileHeader]]":
    """Yield what `decode_with_header` returns, within `room(n_pixels)`, if any: so many may be decoded and kept."""
    request = request_of(frame, max_pixels, window, size)
    with ExitStack() as stack:
        for n_left in reversed(range(MOST_KILLS)):
            try:
                with a_process(cancellation) as process:
                    if room is not None:
                        header, _ = process.ask(content, {**request, "want": "header"}, seconds)
                        stack.enter_context(room(header["width"] * header["height"]))
                        room = None  # taken
                    answer, payload = process.ask(content, {**request, "want": "pixels"}, seconds)
                break
            except DecoderKilledError:
                if not n_left:
                    raise
        yield np.frombuffer(payload, np.uint8).reshape(answer["shape"]), FileHeader.parsed(answer["header"])


def inspect_isolated(
    content: bytes,
    frame: int,
    max_pixels: int,
    window: Window | None,
    room: "Callable[[int], AbstractContextManager[None]]",
    *,
    size: int = DEFAULT.size,
) -> ImageInfo:
    """Decode an image in another process to check that it is readable; return what it is.

    The parameters and errors are those of `decode_with_header`; within `room(n_pixels)`, so many pixels may be decoded.
    """
    request = request_of(frame, max_pixels, window, size)
    with a_process() as process:
        header, _ = process.ask(content, {**request, "want": "header"}, None)
        with room(header["width"] * header["height"]):
            found, _ = process.ask(content, {**request, "want": "check"}, None)
    image_format, mode, bits = found["kind"]
    width, height = found["size"]
    return ImageInfo((image_format, mode, bits), (width, height), tuple(found["notes"]), found["has_two_values"])


def request_of(frame: int, max_pixels: int, window: Window | None, size: int) -> dict[str, Any]:
    """Return what every request for an image states."""
    return {"frame": frame, "max_pixels": max_pixels, "window": window and [window.center, window.width], "size": size}


@atexit.register
def close_idle() -> None:
    """End the processes that decode nothing now, at once: one may still be importing torch."""
    while _idle:
        process = _idle.pop()
        process.stop()
        process.close()
