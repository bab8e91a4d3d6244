"""Files and folders are written whole or not at all, and the next process puts right what a killed one left."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import hoarfrost.features.files.whole as whole
from hoarfrost.features.files.whole import put_right, whole_file, whole_folder
from tests.support.killed import run_killed


def write_folder(place: Path, text: str) -> None:
    with whole_folder(place) as staging:
        (staging / "deeper").mkdir()
        (staging / "deeper" / "text").write_text(text)


def write_file(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text.encode())


def text_of(place: Path) -> str:
    return (place if place.is_file() else place / "deeper" / "text").read_text()


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("write", [write_folder, write_file])
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_change_it_is_the_earlier_or_the_new_one_and_nothing_else_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, str], None], can_exchange: bool, after: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(whole, "exchange", lambda *_: False)
    place = tmp_path / "place"
    for n in itertools.count(1):
        write(place, "earlier")
        was_killed = run_killed(lambda: write(place, "new"), n, after=after)
        if can_exchange:
            assert place.exists()  # at every moment
        put_right(place)
        assert text_of(place) in (["earlier", "new"] if was_killed else ["new"])
        assert os.listdir(tmp_path) == ["place"]
        if not was_killed:
            break
    assert n > (4 if write is write_folder else 2)


def test_leftovers_of_names_that_are_longer_stay(tmp_path: Path) -> None:
    others = [".place.old.123.tmp", ".placebo.123.tmp", ".place.notes.old", "place.123.tmp", ".place.12.3.tmp"]
    for name in others:
        (tmp_path / name).write_text("")
    (tmp_path / ".place.123.tmp").mkdir()
    (tmp_path / ".place.0123456789abcdef0123456789abcdef.tmp").write_text("")
    write_file(tmp_path / "place", "new")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "place"])


@pytest.mark.parametrize("write", [write_folder, write_file])
def test_what_another_process_is_writing_is_not_swept(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    place = tmp_path / "place"
    with whole_folder(place) if write is write_folder else whole_file(place):
        write(place, "of the other")
        assert len(os.listdir(tmp_path)) == 2
    assert os.listdir(tmp_path) == ["place"]


def test_folder_moved_aside_by_an_earlier_version_comes_back(tmp_path: Path) -> None:
    write_folder(tmp_path / ".place.4711.old", "earlier")
    (tmp_path / ".place.4711.tmp").mkdir()
    put_right(tmp_path / "place")
    assert text_of(tmp_path / "place") == "earlier"
    assert os.listdir(tmp_path) == ["place"]
