"""The C++ compiler that torch uses on a CPU: whether it works, before torch waits for it endlessly."""

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
    """The compiler is missing, fails, or hangs, as when a licence server or a network drive does not answer."""


def compiler_command() -> list[str]:
    """Return the command that torch uses: $CXX, else g++ (clang++ on macOS)."""
    return shlex.split(os.environ.get("CXX", "")) or ["clang++" if sys.platform == "darwin" else "g++"]


def compiler_path() -> str:
    """Return the compiler's path, which measured speeds depend on; empty if it is missing."""
    return shutil.which(compiler_command()[0]) or ""


def check_compiler(seconds: float = PROBE_SECONDS) -> None:
    """Compile two lines; raise CompilerError if this fails, or takes longer than `seconds`."""
    command = compiler_command()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(_PROBE, encoding="ascii")
        with (Path(folder) / "output").open("w+b") as output:
            try:
                status = _run([*command, "-shared", "-fPIC", str(source), "-o", f"{folder}/probe.so"], output, seconds)
            except OSError as error:
                raise CompilerError(f"no C++ compiler: {command[0]}: {error.strerror or error}") from error
            except subprocess.TimeoutExpired as error:
                raise CompilerError(f"{command[0]} did not compile two lines within {seconds:g} s") from error
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
    if status:
        raise CompilerError(f"{command[0]} fails: {lines[0] if lines else f'exit status {status}'}")


def _run(command: list[str], output: IO[bytes], seconds: float) -> int:
    """Run in a new process group, so that the processes that a hanging compiler started end with it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    try:
        return process.wait(seconds)
    except BaseException:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        raise
