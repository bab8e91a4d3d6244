"""The process that `hoarfrost.features.decoding.isolated` starts. It decodes images from stdin, and may crash.

A request is a line of JSON and a file's bytes; an empty line asks for the answers so far. The JSON has frame, max_pixels,
window, size, want, seconds (of computing, at most), and n_bytes: null for the file sent before. The answer is a line of
JSON and the pixels. The JSON has n_bytes and either an error with its kind, or what was wanted: for "header" the kind, the
size, the header's facts, and the width and height to be decoded; "check" decodes as well, and adds notes and whether there
are two values only; "pixels" adds the shape of the pixels, and only it sends them.

"memory" has path and size of shared memory, and opens it; "nothing" is answered as soon as the process is ready. "looks"
has key, views, region, and the offsets there at which the looks are written; the answer has notes and facts, or n_pixels
of an image that is larger than most_at_once: nothing is decoded then.
"""

import json
import math
import mmap
import os
import sys
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from hoarfrost.features.decoding import limits
from hoarfrost.features.decoding.budget import OverBudgetError, Share
from hoarfrost.features.decoding.formats import EncodedFrame
from hoarfrost.features.decoding.images import Decoding, opened
from hoarfrost.features.decoding.region import Region
from hoarfrost.features.decoding.views import View
from hoarfrost.features.decoding.windows import Window
from hoarfrost.features.errors import ImageDecodeError, reason_of


class Decoder:
    """Answers requests; keeps the latest file and the shared memory."""

    def __init__(self) -> None:
        self._content = b""
        self._memory: npt.NDArray[np.uint8] | None = None
        self._in_use = 0  # bytes of address space, with the shared memory and torch

    def serve(self, requests: BinaryIO, answers: BinaryIO) -> None:
        """Answer requests until the input ends."""
        while line := requests.readline():
            if line == b"\n":
                answers.flush()
                if self._memory is not None and not self._in_use:
                    import hoarfrost.features.decoding.looks  # noqa: F401 - takes seconds: before the first image is here

                    self._in_use = limits.address_space()
                continue
            asked = json.loads(line)
            if asked["n_bytes"] is not None:
                self._content = requests.read(asked["n_bytes"])
            try:
                answer, payload = self._answer(asked)
            except (ImageDecodeError, OSError, MemoryError) as error:
                reason = reason_of(error)
                answer, payload = {"error": reason.text, "kind": reason.kind}, memoryview(b"")
            answers.write(json.dumps({**answer, "n_bytes": payload.nbytes}).encode() + b"\n")
            answers.write(payload)

    def _answer(self, asked: dict[str, Any]) -> tuple[dict[str, Any], memoryview]:
        if asked["want"] == "nothing":
            return {}, memoryview(b"")
        if asked["want"] == "memory":
            limits.limit(asked["seconds"], 0, 0, in_use=limits.address_space() + asked["size"])
            with open(asked["path"], "r+b", buffering=0) as file:
                self._memory = np.frombuffer(mmap.mmap(file.fileno(), asked["size"]), np.uint8)
            return {}, memoryview(b"")
        limits.limit(asked["seconds"], asked["max_pixels"], len(self._content), in_use=self._in_use)
        content = EncodedFrame(self._content, b"", asked["frame"], 0) if asked["frame"] else self._content
        if asked["want"] != "looks":
            return _decoded(content, asked)
        assert self._memory is not None
        return _write_looks(content, asked, self._memory), memoryview(b"")


def _write_looks(content: bytes | EncodedFrame, asked: dict[str, Any], memory: npt.NDArray[np.uint8]) -> dict[str, Any]:
    from hoarfrost.features.decoding.looks import seen_in  # here: others do without torch

    notes: list[str] = []
    decoding = replace(_decoding(asked, notes), budget=Share(asked["most_at_once"]))
    views = [View(**view) for view in asked["views"]]
    region = asked["region"] and Region.parsed(asked["region"])
    try:
        seen = seen_in(content, bytes.fromhex(asked["key"]), views, decoding, region)
    except OverBudgetError as error:
        return {"n_pixels": error.n_pixels}
    for offset, look in zip(asked["offsets"], seen.looks, strict=True):
        shape = (3, *look.shape[1:])
        memory[offset : offset + math.prod(shape)].reshape(shape)[:] = look.numpy()  # grey is broadcast
    return {"notes": notes, "facts": seen.facts}


def _decoding(asked: dict[str, Any], notes: list[str]) -> Decoding:
    window = None if asked["window"] is None else Window(*asked["window"])
    return Decoding(asked["max_pixels"], window, on_note=notes.append, is_isolated=True, size=asked["size"])


def _decoded(content: bytes | EncodedFrame, asked: dict[str, Any]) -> tuple[dict[str, Any], memoryview]:
    notes: list[str] = []
    with opened(content, _decoding(asked, notes)) as image:
        answer = {"kind": image.kind, "size": image.size, "width": image.width, "height": image.height, "notes": notes}
        pixels = None if asked["want"] == "header" else np.ascontiguousarray(image.pixels())
        answer["header"] = image.header  # after its pixels: some files have EXIF behind them
    if pixels is None or asked["want"] == "check":
        return {**answer, "has_two_values": pixels is not None and _has_two_values(pixels)}, memoryview(b"")
    return {**answer, "shape": pixels.shape}, pixels.data.cast("B")


def _has_two_values(pixels: npt.NDArray[np.uint8]) -> bool:
    low, high = pixels.min(), pixels.max()
    return bool(low < high and ((pixels == low) | (pixels == high)).all())


if __name__ == "__main__":
    # What a library prints must not be mixed into the answers.
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    limits.end_with_parent()
    Decoder().serve(sys.stdin.buffer, own)
