"""The process that `hoarfrost.features.decoding.isolated` starts. It decodes images from stdin, and may crash.

A request is a line of JSON and a file's bytes. The JSON has frame, max_pixels, window, size, want, seconds (of computing,
at most), and n_bytes: null for the file sent before. The answer is a line of JSON and the pixels. The JSON has n_bytes
and either an error with its kind, or what was wanted: for "header" the kind, the size, the header's facts, and the width
and height to be decoded; "check" decodes as well, and adds notes and whether there are two values only; "pixels" adds the
shape of the pixels, and only it sends them.
"""

import json
import os
import sys
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from hoarfrost.features.decoding import limits
from hoarfrost.features.decoding.formats import EncodedFrame
from hoarfrost.features.decoding.images import Decoding, opened
from hoarfrost.features.decoding.windows import Window
from hoarfrost.features.errors import ImageDecodeError


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until the input ends."""
    content = b""
    while line := requests.readline():
        asked = json.loads(line)
        if asked["n_bytes"] is not None:
            content = requests.read(asked["n_bytes"])
        limits.limit(asked["seconds"], asked["max_pixels"], len(content))
        try:
            answer, payload = _answer(content, asked)
        except ImageDecodeError as error:
            answer, payload = {"error": str(error), "kind": error.kind}, memoryview(b"")
        answers.write(json.dumps({**answer, "n_bytes": payload.nbytes}).encode() + b"\n")
        answers.write(payload)
        answers.flush()


def _answer(content: bytes, asked: dict[str, Any]) -> tuple[dict[str, Any], memoryview]:
    notes: list[str] = []
    window = None if asked["window"] is None else Window(*asked["window"])
    decoding = Decoding(asked["max_pixels"], window, on_note=notes.append, is_isolated=True, size=asked["size"])
    with opened(EncodedFrame(content, b"", asked["frame"], 0) if asked["frame"] else content, decoding) as image:
        answer = {"kind": image.kind, "size": image.size, "width": image.width, "height": image.height, "notes": notes}
        answer["header"] = image.header
        pixels = None if asked["want"] == "header" else np.ascontiguousarray(image.pixels())
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
    serve(sys.stdin.buffer, own)
