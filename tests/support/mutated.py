"""Decode a few thousand mutated files of every format; print the peak memory: `python -m tests.support.mutated N`."""

import random
import sys

from hoarfrost.features.decoding.images import Decoding, decode_pixels
from hoarfrost.features.errors import ImageDecodeError
from tests.benchmarks.peak import peak_mb
from tests.decoding.test_dicom_files import SMALL
from tests.decoding.test_formats import CORPUS
from tests.support.dicoms import PYDICOM_FILES

MAX_PIXELS = 1 << 24  # 16 million: what a header promises may be allocated before its pixels turn out to be missing


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Change bytes, cut pieces out, put pieces in, or cut the end off."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(changed) + 1)
        changed[at : at + chance.randint(0, 30)] = chance.randbytes(chance.randint(0, 8))
    return bytes(changed[: chance.randint(0, len(changed))]) if chance.random() < 0.1 else bytes(changed)


def main(n: int) -> None:
    chance = random.Random(0)
    files = [content for content, _, _ in CORPUS.values()] + list(SMALL.values())
    files += [path.read_bytes() for path in sorted(PYDICOM_FILES.glob("*.dcm")) if path.stat().st_size < 1 << 16]
    n_refused = 0
    for i in range(n):
        try:
            decode_pixels(mutated(files[i % len(files)], chance), Decoding(MAX_PIXELS))
        except ImageDecodeError:
            n_refused += 1
    print(f"{n_refused} {peak_mb():.0f}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
