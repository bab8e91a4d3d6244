"""The results of `cache import` and `cache export` as text."""

from typing import TYPE_CHECKING

from hoarfrost.cli.console.lines import count

if TYPE_CHECKING:
    from hoarfrost.features.exchange.exporting import CacheExportSummary
    from hoarfrost.features.exchange.importing import ImportSummary

SHOWN = 20


def import_text(summary: "ImportSummary") -> str:
    """Describe an import, and which checks of leakage are possible."""
    lines = [
        (
            f"{summary.dataset}: {count(summary.imported, 'image')} of {summary.dim:,} numbers imported from "
            f"{summary.source}, matched by {summary.matched_by}; {summary.failed:,} without an embedding"
        ),
        f"cache {summary.cache}: {'as exported: ' if summary.is_own else 'made elsewhere, by '}{summary.encoder}",
    ]
    if summary.pooling:
        lines.append(f"each embedding is the {summary.pooling} of its file")
    if summary.ignored:
        lines.append(f"{count(summary.ignored, 'embedding')} of no image ignored")
    unknown = summary.imported - summary.bytes_known
    if unknown and not summary.is_own:
        lines.append(
            f"leakage: the files of {count(unknown, 'image')} are not here, so identical files are not found by their bytes; "
            "`train` searches near-duplicates by the embeddings"
        )
    elif not summary.is_own:
        lines.append(
            "leakage: the files are here, so identical files are found by their bytes, near-duplicates by embeddings"
        )
    lines += [f"  {path}: {reason}" for path, reason in summary.errors[:SHOWN]]
    if len(summary.errors) > SHOWN:
        lines.append(f"  and {len(summary.errors) - SHOWN:,} more; --json lists all")
    return "\n".join(lines)


def cache_export_text(summary: "CacheExportSummary") -> str:
    """Describe an export in one or two lines."""
    lines = [
        (
            f"{summary.dataset}: {count(summary.images, 'image')}, embeddings of {summary.dim:,} numbers; {summary.output} "
            f"({summary.format}, {summary.bytes:,} bytes)"
        )
    ]
    if len(summary.views) > 1:
        lines.append(f"views {', '.join(summary.views)}")
    if summary.unreadable:
        lines.append(f"{count(summary.unreadable, 'image')} without an embedding")
    return "\n".join(lines)
