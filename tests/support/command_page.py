"""The command reference: `python -m tests.support.command_page` writes it into docs/commands.md, from what click knows.

What stands outside the two comments is written by hand.
"""

import inspect
import re
import textwrap
from collections.abc import Iterator

import click

from hoarfrost.cli import main as hoarfrost
from hoarfrost.cli.options import option_groups
from tests.support.commands import ROOT

PAGE = ROOT / "docs" / "commands.md"
BEGIN, END = "<!-- commands:begin -->", "<!-- commands:end -->"
WIDTH = 120


def updated(text: str) -> str:
    """Return the page with the reference between its comments written anew.

    Raises
    ------
    ValueError
        If the comments are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"expected {BEGIN} and {END}, once each")
    sections = [section(context) for context in contexts_of(root_context())]
    return before + "\n\n".join([BEGIN, *sections, END]) + after


def root_context() -> click.Context:
    """Return the context of `hoarfrost` itself, with its own settings: click keeps what `--help` was first asked with."""
    return click.Context(hoarfrost, info_name="hoarfrost", **hoarfrost.context_settings)


def contexts_of(context: click.Context) -> Iterator[click.Context]:
    """Yield a context for each command below a group, in the order of the help; groups themselves are left out."""
    assert isinstance(context.command, click.Group)
    for name in context.command.list_commands(context):
        below = click.Context(context.command.commands[name], info_name=name, parent=context)
        if isinstance(below.command, click.Group):
            yield from contexts_of(below)
        else:
            yield below


def section(context: click.Context) -> str:
    """Return one command's section: usage, help and options."""
    pieces = context.command.collect_usage_pieces(context)
    blocks = [f"## {context.command_path}", _fenced(" ".join([context.command_path, *pieces]))]
    for paragraph in inspect.cleandoc(context.command.help or "").split("\n\n"):
        if paragraph.startswith("\b"):  # click's sign for lines that stay as they are: an example
            title, *lines = paragraph.removeprefix("\b\n").splitlines()
            blocks += [title, _fenced(textwrap.dedent("\n".join(lines)))]
        else:
            blocks.append(textwrap.fill(paragraph, WIDTH, break_on_hyphens=False, break_long_words=False))
    for heading, records in option_groups(context.command, context).items():
        blocks += [f"{heading}:", "\n".join(_item(*record) for record in records)]
    return "\n\n".join(blocks)


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```"


def _item(names: str, explanation: str) -> str:
    text = re.sub(r"\s+", " ", f"- `{names}`: {explanation}")
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
