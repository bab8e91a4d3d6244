"""Commands on caches: info, verify, compact."""

import dataclasses
from pathlib import Path

import click

from hoarfrost.cli.options import emit, file_argument, json_option


@click.group()
def cache() -> None:
    """Look at a cache, check every byte of it, or make it smaller.

    Example:
      hoarfrost cache info images.h5
    """


@cache.command()
@file_argument
@json_option
def info(file: Path, as_json: bool) -> None:
    """Say what is in a cache: fingerprint, sizes, datasets, duplicates.

    Example:
      hoarfrost cache info images.h5
    """
    from hoarfrost.cli.console import cache_info_text
    from hoarfrost.features.cache import describe

    found = describe(file)
    emit(as_json, dataclasses.asdict(found), cache_info_text(found))


@cache.command()
@file_argument
@json_option
@click.pass_context
def verify(ctx: click.Context, file: Path, as_json: bool) -> None:
    """Check every byte and every reference of a cache; exit 1 where something is wrong.

    Example:
      hoarfrost cache verify images.h5
    """
    from hoarfrost.cli.console import cache_verify_text
    from hoarfrost.features.cache import verify as run_verify

    found = run_verify(file)
    emit(as_json, dataclasses.asdict(found), cache_verify_text(found))
    ctx.exit(0 if found.sound else 1)


@cache.command()
@file_argument
@json_option
def compact(file: Path, as_json: bool) -> None:
    """Fold parts, and drop the embeddings that are damaged or that no dataset uses.

    Example:
      hoarfrost cache compact images.h5
    """
    from hoarfrost.cli.console import cache_compact_text
    from hoarfrost.features.cache import compact as run_compact

    summary = run_compact(file)
    emit(as_json, dataclasses.asdict(summary), cache_compact_text(summary))
