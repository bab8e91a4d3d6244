"""The C++ compiler is tried before torch waits for it: one that is missing, fails or hangs ends no extraction."""

import time
from pathlib import Path

import pytest

from hoarfrost.features.encoder.backbone import Backbone, load_weights
from hoarfrost.features.encoder.backbone.compiler import CompilerError, check_compiler, compiler_path
from hoarfrost.features.encoder.backbone.compiling import try_to_compile


def pretend_compiler(monkeypatch: pytest.MonkeyPatch, path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


def test_a_compiler_that_hangs_is_ended_with_all_that_it_started_and_named_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretend_compiler(monkeypatch, tmp_path / "c++", f"sleep 600 & echo $! > {tmp_path}/child; wait")
    monkeypatch.setattr(check_compiler, "__defaults__", (2.0,))
    backbone = Backbone(load_weights("random:0"), batch_size=2)
    started = time.monotonic()
    assert not try_to_compile(backbone)
    assert time.monotonic() - started < 60
    assert backbone.compute == "eager"
    reason = f"{tmp_path}/c++ did not compile two lines within 2 s"
    assert caplog.messages == [
        "Compiling the network takes about 15 s.",
        f"The network could not be compiled ({reason}). Continuing without compiling, only slower.",
    ]
    child = int((tmp_path / "child").read_text())
    while not is_ended(child):  # the kernel ends what was killed a moment later
        assert time.monotonic() - started < 60
        time.sleep(0.01)


def is_ended(process: int) -> bool:
    """Return whether a process has ended, or is a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_compiler_that_fails_is_named_with_its_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_compiler(monkeypatch, tmp_path / "c++", "echo no licence >&2; exit 3")
    with pytest.raises(CompilerError, match="c\\+\\+ fails: no licence"):
        check_compiler()
    pretend_compiler(monkeypatch, tmp_path / "c++", "exit 3")
    with pytest.raises(CompilerError, match="c\\+\\+ fails: exit status 3"):
        check_compiler()


def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/c++ -O2")
    with pytest.raises(CompilerError, match="no C\\+\\+ compiler: /nonexistent/c\\+\\+: No such file"):
        check_compiler()
    assert compiler_path() == ""


def test_a_compiler_that_works_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_compiler(monkeypatch, tmp_path / "c++", "exit 0")
    check_compiler()
    assert compiler_path() == str(tmp_path / "c++")
