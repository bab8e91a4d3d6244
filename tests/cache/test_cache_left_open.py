"""A cache that another program has open for writing, or had when it was killed, is not called damaged."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hoarfrost.features.cache import CacheWriter, EmbeddingCache
from hoarfrost.features.errors import CacheError
from tests.support.caches import HEADER, some_files, some_images, some_table

OPENS = "import h5py, os; file = h5py.File({path!r}, 'a'); {write}; os.kill(os.getpid(), 9)"


def a_cache(path: Path) -> Path:
    keys, embeddings = some_images(6)
    with CacheWriter(path, HEADER, "demo") as writer:
        writer.append(some_files(keys), embeddings)
        writer.finish(some_table(6), keys)
    return path


@pytest.mark.parametrize("write", ["0", "file.create_group('notes'); file.flush()"], ids=["only opened", "written"])
def test_cache_that_a_killed_program_had_open_is_not_called_damaged(tmp_path: Path, write: str) -> None:
    path = a_cache(tmp_path / "a cache.h5")
    subprocess.run([sys.executable, "-c", OPENS.format(path=str(path), write=write)], check=False)
    before = path.read_bytes()
    with pytest.raises(CacheError, match="marked as open for writing by another program") as raised:
        EmbeddingCache(path)
    assert "not damage, so keep the file" in str(raised.value)
    assert f"h5clear -s '{path}'" in str(raised.value)
    assert "emove the file" not in str(raised.value)
    assert path.read_bytes() == before


def test_cache_whose_start_is_damaged_is_still_called_damaged(tmp_path: Path) -> None:
    path = a_cache(tmp_path / "c.h5")
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheError, match="the cache is damaged"):
        EmbeddingCache(path)
    assert np.frombuffer(path.read_bytes(), np.uint8)[30] == content[30]
