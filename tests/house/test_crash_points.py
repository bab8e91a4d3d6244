"""Commands are killed before and after each change that they make to the disk: nothing is lost, and nothing stays."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.commands import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")]


@pytest.mark.parametrize("name", ["demo", "extract", "train", "report", "predict", "compact"])
def test_command_killed_at_any_change_does_its_work_when_it_is_run_again(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.soak", name], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert [text for text in found if text.startswith(("FAILED", "LEFT", "LOST"))] == [], done.stderr
    assert found[f"kills of {name}"] >= 2


def test_commands_killed_at_random_lose_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.soak", "20"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
