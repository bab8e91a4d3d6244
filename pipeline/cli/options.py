"""Options that several commands share, the headings that help lists them under, and how results are printed."""

import inspect
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial, wraps
from typing import Any, TypeVar

import click

from hoarfrost.cli.types import PathType, ShareType, WindowType
from hoarfrost.features.decoding.formats import MAX_PIXELS
from hoarfrost.features.extraction.engines import ENGINES, LocalOptions

Function = TypeVar("Function", bound=Callable[..., Any])

# The headings of options, in the order in which help shows them.
MAIN = "Main options"
DATA, IMAGES = "Data and splits", "Reading images"
TRAINING, SCORING = "Training", "Scoring"
CONTENT = "Content"
SPEED = "Speed and memory"
ENGINE = "Several GPUs or machines"
OTHER = "Other options"
HEADINGS = (MAIN, DATA, IMAGES, TRAINING, SCORING, CONTENT, SPEED, ENGINE, OTHER)


class _Option(click.Option):
    """An option that knows the heading it is listed under."""

    def __init__(self, *arguments: Any, group: str, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.group = group


def option(names: str, text: str, *, group: str = MAIN, **attributes: Any) -> Callable[[Function], Function]:
    """Add an option, `names` as click takes them but in one text, that help lists under a heading, with its default."""
    attributes.setdefault("show_default", attributes.get("default") is not None)
    return click.option(*names.split(), cls=_Option, group=group, help=text, **attributes)


def option_groups(command: click.Command, context: click.Context) -> dict[str, list[tuple[str, str]]]:
    """Return the names and explanations of a command's options by their heading."""
    found: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)) is not None:
            found[parameter.group if isinstance(parameter, _Option) else OTHER].append(record)
    return {heading: records for heading, records in found.items() if records}


class Command(click.Command):
    """A command whose help lists the options that matter first, then the others under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, heading by heading."""
        for heading, records in option_groups(self, ctx).items():
            with formatter.section(heading):
                formatter.write_dl(records)


class CommandGroup(click.Group):
    """A group that lists its commands in the order of use, each with its whole first sentence."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        """Return the commands in the order in which they were added."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the commands; click itself would cut their sentences off."""
        first = {name: inspect.cleandoc(command.help or "").split("\n\n")[0] for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, re.split(r"(?<=\.)\s", text)[0]) for name, text in first.items()])


_FILE = PathType(dir_okay=False)
_WINDOW = "Window of grey DICOM images, such as 40/400. It replaces the window in the files."
_MAX_PIXELS = "Largest image that is read. A small file can decode to a huge image, so larger ones count as unreadable."
_KEEP_IDS = "Keep the patient IDs of DICOM files unchanged. By default they are replaced by a salted hash."
_DEVICE = "Where to compute. auto uses cuda if it is available, else the CPU."
_WORKERS = "Threads that read and decode images.  [default: the number of CPUs]"
_WEIGHTS = "Where the encoder's weights are now, if they have moved since the run was trained."

window = option("--window", _WINDOW, group=IMAGES, type=WindowType(), metavar="CENTER/WIDTH")
max_pixels = option("--max-pixels", _MAX_PIXELS, group=IMAGES, type=click.IntRange(1), default=MAX_PIXELS)
keep_ids = option("--keep-ids", _KEEP_IDS, group=IMAGES, is_flag=True)
batch_size = option(
    "--batch-size", "Images in one batch.  [default: 32; on a GPU 256]", group=SPEED, type=click.IntRange(1, 4096)
)
workers = option("--workers", _WORKERS, group=SPEED, type=click.IntRange(1, 256))
decode = option(
    "--decode", "What decodes images. processes: as many as --workers, for a GPU beside many CPUs, on Linux; a decoder that "
    "crashes then costs one image. auto: processes on a GPU from 10,000 images and with more than 4 CPUs, else threads.",
    group=SPEED, type=click.Choice(["auto", "threads", "processes"]), default="auto",
)  # fmt: skip
weights = option("--weights", _WEIGHTS, group=IMAGES, metavar="PATH|…")
json_flag = option("--json as_json", "Print one JSON object on stdout.", group=OTHER, is_flag=True)
cache = option("--cache", "The cache of embeddings, one HDF5 file.", type=_FILE, required=True, metavar="FILE")
run = option("--run", "The run folder.", type=PathType(), required=True, metavar="DIR")
head = option("--head", "Another head of the run than the selected one.", metavar="NAME")
file = click.argument("file", type=_FILE)


def device_among(*devices: str) -> Callable[[Function], Function]:
    """Add `--device`, with a choice of devices; the first is the default."""
    return option("--device", _DEVICE, group=SPEED, type=click.Choice(devices), default=devices[0])


device = device_among("auto", "cpu", "cuda", "mps")


def engine(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--engine` and the options of each engine; the command gets them as one `engine`."""
    names = {field.name for each in ENGINES.values() for field in fields(each)}
    own = partial(option, group=ENGINE, callback=_only_with_its_engine)

    @option(
        "--engine", "local: this machine with all its GPUs. ray: a Ray cluster. For several GPUs and for ray: pip install "
        "'hoarfrost[ray]'.", group=ENGINE, type=click.Choice(list(ENGINES)), default=LocalOptions.name, is_eager=True,
    )  # fmt: skip
    @own(
        "--address", "The Ray cluster to join. auto is the one that this machine belongs to.  [default: start Ray on this "
        "machine]", metavar="auto|HOST:PORT",
    )  # fmt: skip
    @own(
        "--gpus-per-worker", "GPUs for each Ray worker. 0.5 runs two workers on one GPU.  [default: 1]",
        type=ShareType(0, 1, min_open=True), metavar="SHARE",
    )  # fmt: skip
    @own(
        "--cpus-per-worker", "CPUs for each Ray worker.  [default: its host's CPUs, divided by the workers there]",
        type=click.IntRange(1),
    )  # fmt: skip
    @own("--max-workers", "Largest number of Ray workers.  [default: as many as fit]", type=click.IntRange(1))
    @wraps(command)
    def with_engine(*arguments: Any, engine: str, **given: Any) -> Any:
        its = {field.name: given[field.name] for field in fields(ENGINES[engine]) if field.name in given}
        others = {name: value for name, value in given.items() if name not in names}
        return command(*arguments, engine=ENGINES[engine](**its), **others)

    return with_engine


def precision_of(precision: str, *, fast: bool) -> str:
    """Return the precision asked for; refuse one beside `--fast`, which chooses it."""
    if fast and precision != "auto":
        raise click.UsageError("--fast chooses the precision. Pass either --fast or --precision.")
    return "fast" if fast else precision


def _only_with_its_engine(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Refuse an option of another engine: it would have no effect."""
    owners = [name for name, each in ENGINES.items() if parameter.name in {field.name for field in fields(each)}]
    if value is not None and context.params.get("engine") not in owners:
        raise click.UsageError(f"{parameter.opts[0]} is for --engine {' or '.join(owners)}.", context)
    return value


def table(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of how a table is read; the command gets them as one `table`, a TableOptions."""
    own = partial(option, group=DATA)
    names = (
        "path_column", "label_column", "patient_column", "label_separator", "image_root", "include", "exclude",
        "patient_from", "label_from", "merge_labels", "label_map",
    )  # fmt: skip

    @own("--path-column", "The CSV's column of paths, if it is not path.", metavar="NAME")
    @own("--label-column", "The CSV's column of labels, if it is not label.", metavar="NAME")
    @own("--patient-column", "The CSV's column of patients, if it is not patient.", metavar="NAME")
    @own("--label-separator", "What separates several labels in one cell, such as '|'. Each label becomes a column.")
    @own(
        "--image-root", "The folder of the images, if it is not the CSV's. Files below it are also found by name, with or "
        "without extension.", type=PathType(), metavar="DIR",
    )  # fmt: skip
    @own("--include", "Read only files that match, such as 'left*.png'. Repeatable.", multiple=True, metavar="PATTERN")
    @own("--exclude", "Leave out files that match, such as '*_mask*'. Repeatable.", multiple=True, metavar="PATTERN")
    @own(
        "--patient-from", "Take patients from paths: the folder an image is in (parent), or the first group of a regular "
        "expression.", metavar="REGEX|parent",
    )  # fmt: skip
    @own("--label-from", "Take labels from paths, in the same way.", metavar="REGEX|parent")
    @own("--merge-labels", "Count spellings of one label (case, spaces, 1 and 1.0) as one label.", is_flag=True)
    @own(
        "--label-map", "A CSV with the columns label,name: each label is replaced by its name.", type=_FILE,
        metavar="FILE",
    )  # fmt: skip
    @wraps(command)
    def with_table(*arguments: Any, **given: Any) -> Any:
        from hoarfrost.features.datasets.options import TableOptions

        return command(*arguments, table=TableOptions(**{name: given.pop(name) for name in names}), **given)

    return with_table


def emit(as_json: bool, document: dict[str, Any], text: str, following: Sequence[object] = ()) -> None:
    """Print a result: one JSON object, or text for people; on a terminal also the command that usually follows."""
    from hoarfrost.cli.console.progress import harmless

    if following and not as_json and sys.stdout is not None and sys.stdout.isatty():
        text += f"\nNext: hoarfrost {shlex.join(map(str, following))}"
    output = json.dumps(document, ensure_ascii=True, allow_nan=False) if as_json else harmless(text)
    # File names that are not UTF-8 must not end a finished command in an encoding error.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # there may be no stdout at all
    click.echo(output.encode(encoding, "replace").decode(encoding))
