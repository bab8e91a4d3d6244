"""The command as a process of its own: `hoarfrost`, or `python -m hoarfrost`."""

import atexit
import gc

from hoarfrost.cli import main

# Objects made between two searches for garbage; Python's default is 700. Loading the libraries makes hundreds of
# thousands, which all stay: searching them 700 times takes half a second. No image and no step leaves garbage in cycles.
MADE_BETWEEN_SEARCHES = 50_000


def run() -> None:
    """Run the command of this process, and end the process."""
    gc.set_threshold(MADE_BETWEEN_SEARCHES)
    atexit.register(gc.freeze)  # otherwise Python takes all libraries apart at the end, which also takes half a second
    main(prog_name="hoarfrost")


if __name__ == "__main__":
    run()
