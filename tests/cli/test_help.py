"""`--help`: whole sentences, the options that matter first, an example with its output; and the command that follows."""

import re
import sys
from pathlib import Path

import click
import pytest

from hoarfrost.cli import main
from hoarfrost.cli.options import HEADINGS, MAIN, OTHER, option_groups
from tests.cli.test_cli import LEAVES, commands
from tests.support.commands import Hoarfrost
from tests.support.labelled import mixed, write_labelled_cache

GROUPS = [path for path, command in commands() if isinstance(command, click.Group)]


def context_of(path: tuple[str, ...]) -> click.Context:
    # With the settings of `hoarfrost`: click keeps the help option of the first context for all later ones.
    return click.Context(dict(commands())[path], info_name=" ".join(path), **main.context_settings)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_up_to_five_options_come_first_and_the_others_under_headings(path: tuple[str, ...]) -> None:
    groups = option_groups(dict(commands())[path], context_of(path))
    assert list(groups) == [heading for heading in HEADINGS if heading in groups]
    assert len(groups.get(MAIN, ())) <= 5
    assert {"--json", "--help"} <= {name.split(", ")[-1] for name, _ in groups[OTHER]}


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_option_is_listed_once(hoarfrost: Hoarfrost, path: tuple[str, ...]) -> None:
    command, shown = dict(commands())[path], hoarfrost(*path, "--help").stdout
    for option in command.params:
        if isinstance(option, click.Option):
            assert len(re.findall(rf"^  (?:-h, )?{option.opts[0]}(?![\w-])", shown, re.MULTILINE)) == 1


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_example_has_its_output(hoarfrost: Hoarfrost, path: tuple[str, ...]) -> None:
    shown = hoarfrost(*path, "--help").stdout
    example = shown.partition("\n  Example:\n")[2].split("\n\n")[0].splitlines()
    assert example[0].startswith("    $ " + " ".join(["hoarfrost", *path]))
    assert len(example) > 1


@pytest.mark.parametrize("path", GROUPS, ids=lambda path: " ".join(path) or "hoarfrost")
def test_no_description_of_a_command_is_cut_off(hoarfrost: Hoarfrost, path: tuple[str, ...]) -> None:
    listed = hoarfrost(*path, "--help").stdout.partition("Commands:\n")[2]
    assert "..." not in listed
    entries = re.split(r"\n  (?=\w)", listed.rstrip())
    assert [entry for entry in entries if not entry.endswith(".")] == []
    assert len(entries) == len(dict(commands())[path].commands)  # type: ignore[attr-defined]


# -- the next command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_labelled_cache(tmp_path / "my cache.h5", mixed({"benign": 30, "malignant": 30}))


def test_on_a_terminal_a_command_ends_with_the_next_one(
    hoarfrost: Hoarfrost, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True, raising=False)
    shown = hoarfrost("cache", "verify", cache).stdout
    assert shown.splitlines()[-1] == f"Next: hoarfrost train --cache '{cache}' --run 'runs/my cache'"
    trained = hoarfrost("train", "--cache", cache, "--run", tmp_path / "run", "--head", "linear", "--epochs", 1)
    assert trained.stdout.splitlines()[-1] == f"Next: hoarfrost report --run {tmp_path / 'run'}"
    line = next(line for line in shown.splitlines() if line.startswith("Next: "))
    assert main.commands[line.split()[2]].name == "train"


@pytest.mark.parametrize("arguments", [["--json"], []], ids=["json", "file"])
def test_scripts_get_no_next_command(hoarfrost: Hoarfrost, cache: Path, arguments: list[str]) -> None:
    assert "Next:" not in hoarfrost("cache", "info", cache, *arguments).stdout


def test_next_command_of_a_damaged_cache_is_not_a_training(
    hoarfrost: Hoarfrost, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True, raising=False)
    content = bytearray(cache.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4096] = bytes(4096)
    cache.write_bytes(content)
    verified = hoarfrost("cache", "verify", cache)
    assert verified.status == 1
    assert verified.stdout.splitlines()[-1] == f"Next: hoarfrost cache compact '{cache}'"
