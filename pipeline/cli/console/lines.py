"""Parts of several summaries."""

from collections.abc import Sequence


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows as lines, the cells of each column padded to one width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def count(n: int, noun: str) -> str:
    """Return a number with what it counts, in the plural unless it is one."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def untrained_lines(weights: str) -> list[str]:
    """Return a caution if the weights are untrained."""
    is_untrained = weights.startswith("random:")
    return [f"{weights} is an untrained encoder: its scores are a lower limit, not a result."] if is_untrained else []
