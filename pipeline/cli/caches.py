"""Commands on caches: info, verify, compact, import, export."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from hoarfrost.cli import options as opts
from hoarfrost.cli.types import DataType, PathType


@click.group(cls=opts.CommandGroup)
def cache() -> None:
    """Describe a cache, check every byte of it, make it smaller, or exchange embeddings with other programs.

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


@cache.command("import")
@click.argument("source", metavar="FILE", type=PathType())
@opts.cache
@opts.option(
    "--dataset data", "The dataset that the embeddings are of: a CSV with path,label[,split][,patient], or what `extract` "
    "reads. Not needed if FILE has labels.", type=DataType(), metavar="CSV",
)  # fmt: skip
@opts.option(
    "--encoder-name", "The encoder that made the embeddings. Caches with the same name and dimension count as comparable.  "
    "[default: unknown; then only this very file is]", default="", metavar="NAME", show_default=False,
)  # fmt: skip
@opts.option("--name", "Name of the dataset in the cache.  [default: that of the CSV]", metavar="NAME")
@opts.option(
    "--id-column",
    "The CSV's column of the names in FILE.  [default: paths, or file names]",
    group=opts.DATA,
    metavar="NAME",
)
@opts.option(
    "--on-error", "fail: stop if an image has no embedding, or an embedding no image. skip: list such images as unreadable, "
    "and ignore such embeddings.", group=opts.DATA, type=click.Choice(["fail", "skip"]), default="fail",
)  # fmt: skip
@opts.table
@opts.json_flag
def import_(source: Path, cache: Path, data: Path | str | None, as_json: bool, **options: Any) -> None:
    """Import embeddings that another program made, or that `cache export` wrote, into a cache.

    FILE is an npz file (`embeddings` or `features`, and `paths` or `ids`), a Parquet file (a list column, or a column for
    each dimension), an h5ad file, a slide's .h5 of TRIDENT or CLAM or a folder of them (the mean over a slide's patches is
    imported), or a manifest.csv of eva with its .pt files. No pickle is loaded. `train`, its statistics and its report use
    such a cache like any other; images cannot be embedded for its heads here.

    Example:
      $ hoarfrost cache import uni.npz --dataset cohort.csv --cache uni.h5 --encoder-name UNI
      cohort: 300 images of 1,024 numbers imported from uni.npz, matched by paths; 0 without an embedding
      ...
    """
    from hoarfrost.cli.console.exchange import import_text
    from hoarfrost.features.exchange.importing import ImportOptions, import_embeddings

    summary = import_embeddings(source, cache, data, ImportOptions(**options))
    following = ("train", "--cache", cache, "--run", Path("runs") / cache.stem)
    opts.emit(as_json, dataclasses.asdict(summary), import_text(summary), following)


@cache.command("export")
@opts.file
@opts.option("--output", "The file to write.", type=PathType(dir_okay=False), required=True, metavar="FILE")
@opts.option(
    "--format format_name",
    "Format of the file.  [default: by its suffix]",
    type=click.Choice(["parquet", "npz", "h5ad"]),
)
@opts.option("--dataset", "Dataset of the cache. Required if the cache has several.", metavar="NAME")
@opts.option("--overwrite", "Replace an existing file.", is_flag=True)
@opts.json_flag
def export_(file: Path, output: Path, as_json: bool, **options: Any) -> None:
    """Export a dataset of a cache for other programs: embeddings, paths, digests, labels, splits, patients, attributes.

    `cache import` reads the file back without loss: the same embeddings, bit for bit, with the same keys and fingerprint.
    The file has the patients of the dataset.

    Example:
      $ hoarfrost cache export images.h5 --output images.parquet
      images: 480 images, embeddings of 512 numbers; images.parquet (parquet, 1,034,180 bytes)
    """
    from hoarfrost.cli.console.exchange import cache_export_text
    from hoarfrost.features.exchange.exporting import export_dataset

    summary = export_dataset(file, output, **options)
    opts.emit(as_json, dataclasses.asdict(summary), cache_export_text(summary))
