"""The lines of docs/cache-format.md read a cache without hoarfrost."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.support.caches import write_cache
from tests.support.commands import ROOT
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache
from tests.support.viewed import write_viewed

LABELS = mixed({"benign": 6, "malignant": 4})


def test_lines_of_the_page_read_paths_labels_and_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "cache-format.md").read_text(encoding="utf-8"), re.S)
    cache = write_labelled_cache(tmp_path / "demo.h5", LABELS, name="demo", unreadable=[3])
    monkeypatch.chdir(cache.parent)
    read: dict[str, np.ndarray] = {}
    exec(lines, read)
    assert read["labels"].tolist() == LABELS
    assert np.array_equal(read["x"], embeddings_of(LABELS)[[i for i in range(10) if i != 3]])


def test_lines_of_the_page_read_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, lines = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "cache-format.md").read_text(encoding="utf-8"), re.S)
    embeddings = write_viewed(tmp_path / "demo.h5", ("224", "448", "224:flip"), 6)
    monkeypatch.chdir(tmp_path)
    read: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    exec(lines, read)
    assert len(read["x"]) == 18
    assert f'"448": "{read["codes"]["448"]}"' in lines  # type: ignore[index]
    for view, expected in embeddings.items():
        assert all(np.array_equal(read["x"][f"0-{i}.png", view], expected[i]) for i in range(6))


def test_lines_of_the_page_read_version_1_as_one_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, lines = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "cache-format.md").read_text(encoding="utf-8"), re.S)
    _, embeddings = write_cache(tmp_path / "demo.h5", 6)
    monkeypatch.chdir(tmp_path)
    read: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    exec(lines, read)
    assert len(read["x"]) == 6
    assert all(np.array_equal(read["x"][f"image{i}.png", "224"], embeddings[i]) for i in range(6))
