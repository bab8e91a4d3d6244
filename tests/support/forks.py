"""Processes that begin in milliseconds, to be killed: forks of one that has imported everything."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO

from tests.support.commands import ROOT

_SERVER = """
import json, os, sys
for line in sys.stdin:
    child = os.fork()
    if not child:
        status = 70
        try:
            os.dup2(2, 1)
            main(*json.loads(line))
            status = 0
        finally:
            os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Forks:
    """Runs `main(*arguments)` of a script in one fork after another."""

    server: subprocess.Popen[str]
    errors: IO[bytes]

    def start(self, *arguments: object) -> int:
        """Start a process; return its number. `wait` before the next one."""
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(arguments) + "\n")
        self.server.stdin.flush()
        return self._number()

    def wait(self) -> int:
        """Wait for the process that was started; return its exit status, negative for a signal."""
        return self._number()

    def _number(self) -> int:
        assert self.server.stdout is not None
        line = self.server.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise AssertionError(self.errors.read().decode())
        return int(line)


@contextmanager
def forks_of(script: str) -> Iterator[Forks]:
    """Import what a script imports, and wait for what its `main` is to do."""
    with TemporaryFile() as errors:
        server = subprocess.Popen(
            [sys.executable, "-c", script + _SERVER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=errors, text=True,
        )  # fmt: skip
        try:
            yield Forks(server, errors)
        finally:
            server.communicate()
