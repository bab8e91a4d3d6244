"""Options that several commands share, and how results are printed."""

import json
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

import click

from hoarfrost.cli.types import PathType, ShareType, WindowType
from hoarfrost.features.decoding.formats import MAX_PIXELS
from hoarfrost.features.extraction.engines import ENGINES, LocalOptions

Command = TypeVar("Command", bound=Callable[..., Any])


def window_option(command: Command) -> Command:
    """Add `--window CENTER/WIDTH`."""
    return click.option(
        "--window", type=WindowType(), metavar="CENTER/WIDTH",
        help="Of grey DICOM images, as in 40/400; in place of the files' own.",
    )(command)  # fmt: skip


def max_pixels_option(command: Command) -> Command:
    """Add `--max-pixels N`."""
    return click.option(
        "--max-pixels", type=click.IntRange(1), default=MAX_PIXELS, show_default=True,
        help="Larger images are unreadable: a small file may promise any size.",
    )(command)  # fmt: skip


def device_option(command: Command) -> Command:
    """Add `--device`."""
    return click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
        help="Where to compute; auto is cuda where there is one, else cpu.",
    )(command)  # fmt: skip


def weights_option(command: Command) -> Command:
    """Add `--weights` to a command that uses a run's."""
    text = "Where the backbone's weights are now, if not where they were for the run."
    return click.option("--weights", metavar="PATH|…", help=text)(command)


def json_option(command: Command) -> Command:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(command)


def cache_option(command: Command) -> Command:
    """Add `--cache FILE`."""
    path = PathType(dir_okay=False)
    return click.option("--cache", type=path, required=True, metavar="FILE", help="The cache's HDF5 file.")(command)


def run_option(command: Command) -> Command:
    """Add `--run DIR`."""
    path = PathType()
    return click.option("--run", type=path, required=True, metavar="DIR", help="The run folder.")(command)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--engine` and the options of each engine; the command gets them as one `engine`."""
    names = {field.name for each in ENGINES.values() for field in fields(each)}

    @wraps(command)
    def with_engine(*arguments: Any, engine: str, **given: Any) -> Any:
        own = {field.name: given[field.name] for field in fields(ENGINES[engine]) if field.name in given}
        others = {name: value for name, value in given.items() if name not in names}
        return command(*arguments, engine=ENGINES[engine](**own), **others)

    return _add_engine_options(with_engine)


def _add_engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option(
                "--engine", type=click.Choice(list(ENGINES)), default=LocalOptions.name, show_default=True, is_eager=True,
                help="This machine with all of its GPUs, or a Ray cluster; for several GPUs and for ray: "
                "pip install 'hoarfrost[ray]'.",
            ),
            _engine_option(
                "--address", metavar="auto|HOST:PORT",
                help="The Ray cluster to join: the one that this machine is part of, or by its head.  [default: start Ray "
                "on this machine]",
            ),
            _engine_option(
                "--gpus-per-worker", type=ShareType(0, 1, min_open=True), metavar="SHARE",
                help="GPUs for each of Ray's workers; 0.5 puts two on a GPU.  [default: 1]",
            ),
            _engine_option(
                "--cpus-per-worker", type=click.IntRange(1),
                help="CPUs for each of Ray's workers.  [default: its host's, divided by the workers there]",
            ),
            _engine_option(
                "--max-workers", type=click.IntRange(1),
                help="Ray's workers at most.  [default: as many as there is room for]",
            ),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def _engine_option(name: str, **attributes: Any) -> Callable[[Command], Command]:
    return click.option(name, callback=_only_with_its_engine, **attributes)


def _only_with_its_engine(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Refuse an option of another engine: it would have no effect."""
    owners = [name for name, each in ENGINES.items() if parameter.name in {field.name for field in fields(each)}]
    if value is not None and context.params.get("engine") not in owners:
        raise click.UsageError(f"{parameter.opts[0]} is for --engine {' or '.join(owners)}.", context)
    return value


def emit(as_json: bool, document: dict[str, Any], text: str) -> None:
    """Print a result: one JSON object, or text for people."""
    from hoarfrost.cli.console import harmless

    output = json.dumps(document, ensure_ascii=True, allow_nan=False) if as_json else harmless(text)
    # File names that are not UTF-8 must not end a finished command in an encoding error.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # there may be no stdout at all
    click.echo(output.encode(encoding, "replace").decode(encoding))


def file_argument(command: Command) -> Command:
    """Add the argument FILE, a cache."""
    return click.argument("file", type=PathType(dir_okay=False))(command)
