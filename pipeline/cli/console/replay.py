"""The result of `replay` as text and as a document."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hoarfrost.cli.console.lines import count, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hoarfrost.replay.replaying import Replay

SHOWN = 20


def replay_text(found: "Replay") -> str:
    """Describe what was computed again, what differs, and what could not be computed."""
    return "\n".join(_lines(found))


def _lines(found: "Replay") -> "Iterator[str]":
    if found.changed:
        yield f"{count(len(found.changed), 'file')} changed after the run was written, or missing: {', '.join(found.changed)}"
        yield "Nothing else was compared. Restore these files and run the command again."
        return
    if found.n_probabilities:
        yield (
            f"{count(found.n_probabilities, 'prediction')} computed again from the cache and the heads; "
            f"largest difference {found.largest:.1g}"
        )
    yield f"{count(found.n_figures, 'number')} of metrics.json compared"
    if found.differing:
        yield f"differences: {len(found.differing):,}"
        rows = [
            (
                f"  {one.place}",
                f"recorded {one.recorded}",
                f"now {one.again}",
                "" if one.size is None else f"by {one.size:.2g}",
            )
            for one in found.differing[:SHOWN]
        ]
        yield from table(rows)
        if len(found.differing) > SHOWN:
            yield f"  and {len(found.differing) - SHOWN:,} more (--json lists all)"
    else:
        yield "no difference"
    if found.skipped:
        yield "not computed again:"
        yield from (f"  {one}" for one in found.skipped)


def document_of(found: "Replay") -> dict[str, Any]:
    """Return what `replay --json` prints."""
    return {**asdict(found), "directory": str(found.directory), "is_equal": found.is_equal}
