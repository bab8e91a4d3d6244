"""Parts of several summaries."""

from collections.abc import Sequence

CORRECTED = "p is corrected by Holm's method for all comparisons; the intervals of differences are not."


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows as lines, the cells of each column padded to one width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def count(n: int, noun: str) -> str:
    """Return a number with what it counts, in the plural unless it is one."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def p_text(p: float | None) -> str:
    """Return a p value as it follows an estimate: ", p 0.031", or ", p < 0.001"; empty if there is none."""
    return "" if p is None else ", p < 0.001" if p < 0.001 else f", p {p:z.3f}"


def untrained_lines(weights: str) -> list[str]:
    """Return a caution for each untrained encoder; the weights of several are joined by "and"."""
    untrained = (one for one in dict.fromkeys(weights.split(" and ")) if one.startswith("random:"))
    return [f"{one} is an untrained encoder: its scores are a lower limit, not a result." for one in untrained]
