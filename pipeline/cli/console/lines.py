"""What several summaries are made of."""

from collections.abc import Sequence


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Pad the cells of each column to one width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def untrained_lines(weights: str) -> list[str]:
    """Say so where weights were never trained."""
    is_untrained = weights.startswith("random:")
    return [f"{weights} is an untrained backbone: its figures are a floor, not a result."] if is_untrained else []
