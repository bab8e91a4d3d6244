"""The C++ compiler that torch uses on a CPU: whether it answers, before torch waits for it without an end."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

PROBE_SECONDS = 60.0
_PROBE = '#include <cmath>\nextern "C" float probe(float x) { return std::sqrt(x); }\n'


class CompilerError(Exception):
    """The compiler is missing, fails, or does not end."""


def compiler_command() -> list[str]:
    """Give the command that torch takes: $CXX, else g++ (clang++ on macOS)."""
    return shlex.split(os.environ.get("CXX", "")) or ["clang++" if sys.platform == "darwin" else "g++"]


def compiler_path() -> str:
    """Give where the compiler is; empty where there is none. What was found out with one tells nothing of another."""
    return shutil.which(compiler_command()[0]) or ""


def check_compiler(seconds: float = PROBE_SECONDS) -> None:
    """Compile two lines.

    Raises
    ------
    CompilerError
        If that fails, or takes longer than `seconds`: a licence server or a network drive that does not answer.
    """
    command = compiler_command()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(_PROBE, encoding="ascii")
        with (Path(folder) / "said").open("w+b") as said:
            try:
                status = _run([*command, "-shared", "-fPIC", str(source), "-o", f"{folder}/probe.so"], said, seconds)
            except OSError as error:
                raise CompilerError(f"no C++ compiler: {command[0]}: {error.strerror or error}") from error
            except subprocess.TimeoutExpired as error:
                raise CompilerError(f"{command[0]} compiles two lines in no less than {seconds:g} s") from error
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
    if status:
        raise CompilerError(f"{command[0]} fails: {lines[0] if lines else f'exit status {status}'}")


def _run(command: list[str], said: IO[bytes], seconds: float) -> int:
    """Run in a process group of its own, so that what a hanging compiler has started ends with it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
    try:
        return process.wait(seconds)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
