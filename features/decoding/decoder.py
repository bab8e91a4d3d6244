"""What `hoarfrost.features.decoding.apart` starts: decodes images from stdin, one after another, in a process that may crash.

A request is a line of JSON (frame, max_pixels, window, size, want, n_bytes: null for the file sent before) and the file's
bytes.
The answer is a line of JSON (n_bytes and what is wanted: "header" gives kind, size and width and height to be decoded,
"check" decodes as well, and gives the notes, "pixels" gives their shape too, and sends them; or an error with its kind)
and the pixels.
"""

import json
import os
import sys
from typing import Any, BinaryIO

import numpy as np

from hoarfrost.features.decoding.formats import EncodedFrame
from hoarfrost.features.decoding.images import Decoding, opened
from hoarfrost.features.decoding.windows import Window
from hoarfrost.features.errors import ImageDecodeError


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    content = b""
    while line := requests.readline():
        asked = json.loads(line)
        if asked["n_bytes"] is not None:
            content = requests.read(asked["n_bytes"])
        try:
            answer, payload = _answered(content, asked)
        except ImageDecodeError as error:
            answer, payload = {"error": str(error), "kind": error.kind}, memoryview(b"")
        answers.write(json.dumps({**answer, "n_bytes": payload.nbytes}).encode() + b"\n")
        answers.write(payload)
        answers.flush()


def _answered(content: bytes, asked: dict[str, Any]) -> tuple[dict[str, Any], memoryview]:
    notes: list[str] = []
    window = None if asked["window"] is None else Window(*asked["window"])
    decoding = Decoding(asked["max_pixels"], window, on_note=notes.append, is_isolated=True, size=asked["size"])
    with opened(EncodedFrame(content, b"", asked["frame"], 0) if asked["frame"] else content, decoding) as image:
        answer = {"kind": image.kind, "size": image.size, "width": image.width, "height": image.height, "notes": notes}
        if asked["want"] == "header":
            return answer, memoryview(b"")
        pixels = np.ascontiguousarray(image.pixels())
    if asked["want"] == "check":
        return answer, memoryview(b"")
    return {**answer, "shape": pixels.shape}, pixels.data.cast("B")


if __name__ == "__main__":
    # What a library prints must not get between the answers.
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, own)
