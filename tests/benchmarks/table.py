"""The benchmark's table: printed, and in docs/performance.md between two comments, where rows of what did not run stay."""

import re
import textwrap
from collections.abc import Mapping, Sequence

from tests.benchmarks.measurement import Measurement

HEAD = "| what | weights | measured | demanded |\n|---|---|---|---|"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
WIDTH = 118
_OWNER = re.compile(r" <!-- ([\w.]+) --> \|$")  # unseen at a row's end: which measurement it is of


def row(measurement: Measurement, weights: str) -> str:
    """Return a measurement as a line of the table, with the weights of the backbone that it used."""
    return f"| {measurement.what} | {weights} | {measurement.measured} | {measurement.demanded} |"


def updated(text: str, machine: str, rows: Mapping[str, Sequence[str]]) -> str:
    """Put rows, by the measurement that they are of, and the machine into a text that has the two comments.

    Raises
    ------
    ValueError
        If the comments are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end or BEGIN in old + after or END in after:
        raise ValueError(f"expected {BEGIN} and {END}, once each")
    kept, was_on = _rows_of(old), " ".join(old.partition(HEAD)[0].split())
    merged = {**kept, **{name: [_owned(line, name) for line in lines] for name, lines in rows.items()}}
    on = f"On {machine}."
    if (
        same := re.match(rf"On {re.escape(machine)}\. Rows other than (.+?): (.+)", was_on)
    ) and kept.keys() - rows.keys():
        names = sorted({*same[1].split(", "), *rows})
        on += f" Rows other than {', '.join(names)}: {same[2]}"
    elif kept.keys() - rows.keys() and was_on and machine not in was_on:
        on += f" Rows other than {', '.join(sorted(rows))}: {was_on[0].lower()}{was_on[1:]}"
    elif kept.keys() - rows.keys() and was_on:
        on = was_on
    table = "\n".join([HEAD, *(line for lines in merged.values() for line in lines)])
    on = textwrap.fill(on, WIDTH, break_on_hyphens=False)
    return f"{before}{BEGIN}\n{on}\n\n{table}\n{END}{after}"


def _owned(line: str, name: str) -> str:
    return f"{line[:-2].rstrip()} <!-- {name} --> |"


def _rows_of(block: str) -> dict[str, list[str]]:
    """Return the rows of a block by the measurement that they are of; those that do not say are of none."""
    found: dict[str, list[str]] = {}
    for line in block.splitlines():
        if line.startswith("|") and line not in HEAD.splitlines():
            owner = _OWNER.search(line)
            found.setdefault(owner[1] if owner else "", []).append(line)
    return found
