"""The file of measured speeds: in the user's cache folder, whole, and ignored where it is damaged."""

import json
import math
import os
from pathlib import Path

import pytest

import hoarfrost.features.encoder.backbone.kept_code
from hoarfrost.features.encoder.backbone.compiling import Speeds, Supply, read_speeds, save_speeds, speeds_path
from hoarfrost.features.encoder.backbone.kept_code import code_kept, is_code_kept, note_kept_code

SPEEDS = Speeds(eager_s=0.5, compiled_s=0.25, compile_s=30.0)


@pytest.fixture
def cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_nothing_is_known_at_first(cache_home: Path) -> None:
    assert read_speeds() == {}
    assert not cache_home.exists()


def test_speeds_are_kept_in_the_users_cache_folder(cache_home: Path) -> None:
    save_speeds("a", SPEEDS)
    save_speeds("b", Speeds(1.0, 2.0, 3.0))
    save_speeds("b", Speeds(4.0, 5.0, 6.0))
    assert read_speeds() == {"a": SPEEDS, "b": Speeds(4.0, 5.0, 6.0)}
    assert [path.relative_to(cache_home) for path in cache_home.rglob("*.*")] == [Path("hoarfrost/compiling.json")]


@pytest.mark.parametrize("cache_home", [None, ""])
def test_without_a_cache_folder_of_its_own_it_is_the_homes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache_home: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    if cache_home is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", cache_home)
    assert speeds_path() == tmp_path / ".cache" / "hoarfrost" / "compiling.json"


@pytest.mark.usefixtures("cache_home")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"a": {"eager_s": 0.5, "compi',
        b"null",
        b"[]",
        b'["a"]',
        b"7",
        b'{"a": 7}',
        b'{"a": null}',
        b'{"a": [1, 2, 3]}',
        b'{"a": {}}',
        b'{"a": {"eager_s": 1, "compiled_s": 1}}',
        b'{"a": {"eager_s": 1, "compiled_s": 1, "compile_s": 1, "more": 1}}',
        b'{"a": {"eager_s": "x", "compiled_s": 1, "compile_s": 1}}',
        b'{"a": {"eager_s": null, "compiled_s": 1, "compile_s": 1}}',
        b'{"a": {"eager_s": [], "compiled_s": 1, "compile_s": 1}}',
        b"\xff\xfe\x00",
        b"\0" * 100,
    ],
    ids=repr,
)
def test_a_damaged_or_foreign_file_is_ignored_and_written_again(content: bytes) -> None:
    speeds_path().parent.mkdir(parents=True)
    speeds_path().write_bytes(content)
    assert read_speeds() == {}
    save_speeds("a", SPEEDS)
    assert read_speeds() == {"a": SPEEDS}


@pytest.mark.usefixtures("cache_home")
def test_speeds_that_are_not_numbers_never_pay() -> None:
    save_speeds("a", Speeds(eager_s=math.nan, compiled_s=1, compile_s=1))
    assert not read_speeds()["a"].pay(1_000_000, Supply(), on_cpu=True, is_kept=False)


@pytest.mark.usefixtures("cache_home")
def test_a_file_that_cannot_be_replaced_is_not_an_error_and_leaves_nothing_behind() -> None:
    speeds_path().mkdir(parents=True)
    save_speeds("a", SPEEDS)
    assert read_speeds() == {}
    assert os.listdir(speeds_path().parent) == [speeds_path().name]


def test_a_user_without_a_home_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number that no user has."""

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hoarfrost.features.encoder.backbone.kept_code.Path, "home", nowhere)
    save_speeds("a", SPEEDS)
    assert read_speeds() == {}
    note_kept_code("a")
    assert not is_code_kept("a")
    with code_kept():  # torch uses its own folder
        assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


@pytest.mark.usefixtures("cache_home")
def test_writers_at_the_same_time_leave_a_whole_file(monkeypatch: pytest.MonkeyPatch) -> None:
    save_speeds("a", SPEEDS)
    replace = os.replace

    def late(source: str, target: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        save_speeds("b", SPEEDS)  # another process, between this one's reading and writing
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    save_speeds("c", SPEEDS)
    assert {"a", "c"} <= read_speeds().keys()
    assert json.loads(speeds_path().read_text(encoding="utf-8")).keys() == read_speeds().keys()
