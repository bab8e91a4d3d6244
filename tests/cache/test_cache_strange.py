"""What no extraction writes is named by `cache verify`, although every checksum is right."""

import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import hoarfrost.features.cache.writing
from hoarfrost.features.cache import CacheWriter, EmbeddingCache, verify, write_cache_file
from hoarfrost.features.cache.layout import Block
from hoarfrost.features.errors import CacheError
from tests.support.caches import HEADER, some_files, some_images, some_table, write_cache


def test_values_that_are_not_numbers_are_found(tmp_path: Path) -> None:
    keys, embeddings = some_images(6)
    embeddings[2, 7], embeddings[4, 0] = np.nan, np.inf
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        writer.append(some_files(keys), embeddings)
        writer.finish(some_table(6, "demo"), keys)
    assert verify(tmp_path / "c.h5").problems == (f"{tmp_path / 'c.h5'}: 2 embeddings contain NaN or infinity",)


def test_dimension_that_is_not_the_encoders_is_found(tmp_path: Path) -> None:
    keys, embeddings = some_images(4)
    with CacheWriter(tmp_path / "c.h5", replace(HEADER, dim=7), "demo") as writer:
        writer.append(some_files(keys), np.ascontiguousarray(embeddings[:, :7]))
        writer.finish(some_table(4, "demo"), keys)
    assert "embeddings of 7 numbers, but resnet18 has 512" in verify(tmp_path / "c.h5").problems[0]


def test_format_version_that_never_was_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = hoarfrost.features.cache.writing._write_attributes

    def changed(target: h5py.Group, **values: str | int) -> None:
        original(target, **(values | ({"format_version": -3} if "format_version" in values else {})))

    write_cache(tmp_path / "sound.h5", 3)
    monkeypatch.setattr(hoarfrost.features.cache.writing, "_write_attributes", changed)
    keys, embeddings = some_images(3)
    write_cache_file(tmp_path / "c.h5", HEADER, 3, [Block(keys, embeddings)], [some_table(3)])
    with pytest.raises(CacheError, match=re.escape("its format version is -3")):
        EmbeddingCache(tmp_path / "c.h5")
    assert "its format version is -3" in str(verify(tmp_path / "c.h5").problems)
    assert verify(tmp_path / "sound.h5").sound
