"""Commands on this machine: doctor."""

import dataclasses

import click

from hoarfrost.cli.options import emit, json_option


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say what this machine has of what hoarfrost can use, what a missing thing costs, and what brings it.

    Nothing is downloaded or changed. Exit 1 where something is broken, not where something optional is missing.

    Example:
      hoarfrost doctor
    """
    from hoarfrost.cli.console import diagnosis_text
    from hoarfrost.cli.doctor import diagnose

    found = diagnose()
    emit(as_json, {**dataclasses.asdict(found), "sound": found.sound}, diagnosis_text(found))
    ctx.exit(0 if found.sound else 1)
