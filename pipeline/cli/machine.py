"""Commands on this machine: doctor."""

import click

from hoarfrost.cli import options as opts


@click.command(cls=opts.Command)
@opts.json_flag
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check this machine: what hoarfrost can use, what is missing, what that costs and how to install it.

    Nothing is downloaded or changed. The exit status is 1 if something is broken, and 0 if only optional parts are
    missing.

    Example:
      $ hoarfrost doctor
      ok       Python             3.11.7 in .venv
      missing  GPU                not found
                                  extraction runs on the CPU
      ...
      18 checks: 0 broken, 4 missing but optional
    """
    from hoarfrost.cli.console.summaries import diagnosis_text
    from hoarfrost.cli.doctor import diagnose

    found = diagnose()
    opts.emit(
        as_json,
        found.document(),
        diagnosis_text(found),
        ("demo", "demo") if found.sound else (),
    )
    ctx.exit(0 if found.sound else 1)
