"""The command as a process of its own: `hoarfrost`, or `python -m hoarfrost`."""

import atexit
import gc
import sys

from hoarfrost.cli import main

# Objects made between two searches for garbage; Python's default is 700. Loading the libraries makes hundreds of
# thousands, which all stay: searching them 700 times takes half a second. No image and no step leaves garbage in cycles.
MADE_BETWEEN_SEARCHES = 50_000


def run() -> None:
    """Run the command of this process, and end the process."""
    gc.set_threshold(MADE_BETWEEN_SEARCHES)
    atexit.register(_keep_libraries)
    main(prog_name="hoarfrost")


def _keep_libraries() -> None:
    """Keep Python from taking all libraries apart as it ends, which takes half a second: the memory is freed anyway."""
    if "triton" not in sys.modules:  # it would list what it then finds as leaks; torch's compiler loads it
        gc.freeze()


if __name__ == "__main__":
    run()
