"""Commands are killed before and after changes that they make to the disk: nothing is lost, and nothing stays.

`make soak` kills at every change, and 1,000 times at random: here are some of both.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.support.commands import ROOT
from tests.support.soak import POINTS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")]


def soaked(*arguments: object) -> tuple[int, dict[str, int], str]:
    """Return how the kills ended: the exit status, what was counted, and what was said of failures."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.soak", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


@pytest.mark.timeout(1200)
def test_commands_killed_at_changes_do_their_work_when_they_are_run_again() -> None:
    _, found, errors = soaked("every/3")
    assert [text for text in found if text.startswith(("FAILED", "LEFT", "LOST"))] == [], errors
    assert [name for name in POINTS if not found.get(f"kills of {name}")] == []


@pytest.mark.timeout(1200)
def test_commands_killed_at_random_lose_nothing() -> None:
    status, found, errors = soaked(10)
    assert status == 0, (found, errors)
