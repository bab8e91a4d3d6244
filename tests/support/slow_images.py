"""Valid images that take far longer to decode than their pixels."""

import io

import numpy as np
from PIL import Image


def jpeg_of_scans(n_scans: int, side: int = 2000) -> bytes:
    """Return a progressive JPEG with so many scans, of which most add nothing; 14 bytes each."""
    values = np.random.default_rng(0).integers(0, 255, (side // 8, side // 8), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).resize((side, side)).save(buffer, "JPEG", progressive=True, quality=75)
    # Two codes: the end of a band for 2^14 blocks and more, and for one block.
    table = b"\xff\xc4" + (2 + 1 + 16 + 2).to_bytes(2) + b"\x10" + bytes([1, 1, *[0] * 14]) + b"\xe0\x00"
    bits, left = "", (-(-side // 8)) ** 2
    while left > 0:
        run = min(left, (1 << 15) - 1)
        bits, left = (bits + "0" + format(run - (1 << 14), "014b"), left - run) if run >> 14 else (bits + "10" * run, 0)
    bits += "1" * (-len(bits) % 8)
    data = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00" + data
    return buffer.getvalue()[:-2] + table + scan * n_scans + b"\xff\xd9"
