"""A file of a run that was changed later is refused, whatever was changed in it."""

import csv
import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from hoarfrost.features.errors import RunError
from hoarfrost.runs import read_heads, read_run, read_splits
from hoarfrost.runs.digests import DIGESTS
from tests.runs.test_runs import same, written

CHANGED = (
    r"was changed after the run was written: its SHA-256 is not the one in SHA256SUMS\. Restore the file, or remove"
)


def test_inverted_probabilities_are_refused(tmp_path: Path) -> None:
    run = written(tmp_path / "run")
    with (run.directory / "predictions.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    with (run.directory / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *([*row[:4], *(repr(1 - float(p)) for p in row[4:])] for row in rows)])
    for read in (read_run, read_splits):
        with pytest.raises(RunError, match=rf"run/predictions\.csv {CHANGED}"):
            read(run.directory)
    assert read_heads(run.directory).config == run.config  # predict needs no predictions


def test_any_change_of_any_file_is_an_error_of_one_kind(tmp_path: Path) -> None:
    run, seed = written(tmp_path / "run"), random.Random(0)
    for path in sorted(run.directory.glob("*")):
        whole = path.read_bytes() if path.is_file() else b""
        for _ in range(60 if whole else 0):
            damaged = bytearray(whole)
            start = seed.randrange(len(whole))
            damaged[start : start + seed.choice([1, 1, 8, 400])] = seed.randbytes(seed.choice([0, 1, 8]))
            if bytes(damaged) == whole:
                continue
            path.write_bytes(damaged)
            try:
                assert same(read_run(run.directory), run)  # of SHA256SUMS, the line of a file that is not read
                assert path.name == DIGESTS
            except RunError:
                pass
        if whole:
            path.write_bytes(whole)
    assert same(read_run(run.directory), run)


def test_digests_are_those_of_sha256sum(tmp_path: Path) -> None:
    written(tmp_path / "run")
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", "--strict", DIGESTS], cwd=tmp_path / "run", check=True)


def test_run_of_an_earlier_version_has_no_digests_and_opens(tmp_path: Path) -> None:
    run = written(tmp_path / "run")
    (run.directory / DIGESTS).unlink()
    with pytest.raises(RunError, match=r"run: the run is incomplete, SHA256SUMS is missing\. Remove the folder"):
        read_run(run.directory)
    config = json.loads((run.directory / "config.json").read_text())
    (run.directory / "config.json").write_text(json.dumps(config | {"format_version": 5}))
    assert same(read_run(run.directory), run)
