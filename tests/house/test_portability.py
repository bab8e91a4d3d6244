"""Nothing of POSIX alone is needed: everything is imported and the main job runs where its modules are blocked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hoarfrost.features.files import is_url
from hoarfrost.features.files.whole import whole_folder
from tests.support.commands import ROOT

WORKFLOW = ROOT / ".github" / "workflows" / "tests.yml"


def run(*command: object) -> str:
    arguments = [sys.executable, "-m", "tests.support.other_system", *map(str, command)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_is_imported_without_posix() -> None:
    assert int(run()) > 200


@pytest.mark.slow
def test_main_job_runs_without_posix(tmp_path: Path) -> None:
    """`demo` makes the dataset, and its `--report` does all that `make report` does."""
    run("demo", tmp_path / "demo", "--images", "60", "--report", "--weights", "random:0")
    assert (tmp_path / "demo" / "run" / "report.html").stat().st_size > 100_000
    run("predict", tmp_path / "demo" / "images", "--run", tmp_path / "demo" / "run", "--output", tmp_path / "new.csv")
    run("cache", "verify", tmp_path / "demo" / "cache.h5")
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".tmp", ".old"}]


SECOND = """
import sys
from pathlib import Path
from tests.support.other_system import block
block()
from hoarfrost.features.cache.lock import WriterLock
from hoarfrost.features.errors import CacheLockedError
try:
    with WriterLock(Path(sys.argv[1])):
        print("locked", flush=True)
        sys.stdin.read()
except CacheLockedError as error:
    print(error)
"""


def test_second_writer_is_refused_by_the_lock_of_windows(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SECOND, str(tmp_path / "c.h5")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, input="")
        assert f"is being written by process {first.pid}" in second.stdout
        first.communicate("")
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, input="").stdout == "locked\n"


@pytest.mark.parametrize("path", ["C://data/images", "c:\\data\\images", "D:/x"])
def test_path_with_a_drive_letter_is_no_url(path: str) -> None:
    assert not is_url(path)


def test_folder_is_replaced_without_an_atomic_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hoarfrost.features.files.whole.exchange", lambda *_: False)
    for text in ("first", "second"):
        with whole_folder(tmp_path / "x") as staging:
            (staging / "text").write_text(text)
    assert (tmp_path / "x" / "text").read_text() == "second"
    assert os.listdir(tmp_path) == ["x"]


def test_public_ci_runs_the_suite_on_three_systems() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    assert all(system in text for system in ("ubuntu-latest", "macos-latest", "windows-latest"))
    assert "pytest" in text
