"""Run a module as a script; say on stderr what memory it took at most: `python -m tests.benchmarks.peak MODULE …`.

The kernel's own figure for a child (`ru_maxrss`) begins with the size of the process that started it.
"""

import runpy
import sys
from pathlib import Path


def peak_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    module, sys.argv = sys.argv[1], sys.argv[1:]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        print(f"peak {peak_mb():.1f} MB", file=sys.stderr)
