"""The command reference is what the commands themselves say."""

import click
import pytest

from tests.support.command_page import BEGIN, END, PAGE, contexts_of, root_context, section, updated


def test_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert updated(text) == text, "write it anew: python -m tests.support.command_page"


def test_every_command_and_every_option_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    contexts = list(contexts_of(root_context()))
    assert len(contexts) >= 14
    for context in contexts:
        assert f"\n## {context.command_path}\n" in text
        names = [
            name
            for one in context.command.params
            if isinstance(one, click.Option)
            for name in (*one.opts, *one.secondary_opts)
        ]
        assert [name for name in names if name not in section(context)] == []


def test_no_line_is_wider_than_the_page() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("text", ["", BEGIN, END + BEGIN, BEGIN + BEGIN + END, BEGIN + END + END])
def test_page_without_its_comments_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="commands:begin.*once each"):
        updated(text)
