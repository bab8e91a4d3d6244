"""Commands on caches: info, verify, compact."""

import dataclasses
from pathlib import Path

import click

from hoarfrost.cli import options as opts


@click.group(cls=opts.CommandGroup)
def cache() -> None:
    """Describe a cache, check every byte of it, or make it smaller.

    Example:
      $ hoarfrost cache info images.h5
      /data/images.h5: 480 embeddings, 1,023,522 bytes, 0 used by no dataset
      ...
    """


@cache.command()
@opts.file
@opts.json_flag
def info(file: Path, as_json: bool) -> None:
    """Show what is in a cache: fingerprint, sizes, datasets, duplicates.

    Example:
      $ hoarfrost cache info images.h5
      /data/images.h5: 480 embeddings, 1,023,522 bytes, 0 used by no dataset
      fingerprint 9e27fd4e851e0b949bae45afea9386761000252f0596213275efc58c6e005f18
      weights imagenet (SHA-256 10e6ae8b1e2f66ac…), resnet18, bfloat16, eager
      ...
    """
    from hoarfrost.cli.console.summaries import cache_info_text
    from hoarfrost.features.cache import describe

    found = describe(file)
    opts.emit(as_json, dataclasses.asdict(found), cache_info_text(found), ("cache", "verify", file))


@cache.command()
@opts.file
@opts.json_flag
@click.pass_context
def verify(ctx: click.Context, file: Path, as_json: bool) -> None:
    """Check every byte and every reference of a cache; the exit status is 1 if something is wrong.

    Example:
      $ hoarfrost cache verify images.h5
      /data/images.h5: sound (480 embeddings, 1 dataset, 0 parts)
    """
    from hoarfrost.cli.console.summaries import cache_verify_text
    from hoarfrost.features.cache import verify as run_verify

    found = run_verify(file)
    following = (
        ("train", "--cache", file, "--run", Path("runs") / file.stem) if found.sound else ("cache", "compact", file)
    )
    opts.emit(as_json, dataclasses.asdict(found), cache_verify_text(found), following)
    ctx.exit(0 if found.sound else 1)


@cache.command()
@opts.file
@opts.json_flag
def compact(file: Path, as_json: bool) -> None:
    """Merge the parts of a cache, and remove embeddings that are damaged or that no dataset uses.

    Example:
      $ hoarfrost cache compact images.h5
      /data/images.h5: 480 embeddings; 0 parts merged, 0 unused and 0 damaged embeddings removed; ...
    """
    from hoarfrost.cli.console.summaries import cache_compact_text
    from hoarfrost.features.cache import compact as run_compact

    summary = run_compact(file)
    opts.emit(as_json, dataclasses.asdict(summary), cache_compact_text(summary), ("cache", "info", file))
