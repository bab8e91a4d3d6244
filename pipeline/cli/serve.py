"""The command that serves a run's head as a page."""

from pathlib import Path

import click

from hoarfrost.cli.options import device_option, emit, json_option, run_option, weights_option
from hoarfrost.cli.types import ShareType, SizeType


@click.command()
@run_option
@click.option("--head", metavar="NAME", help="Another head of the run than the selected one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 is all of them.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@weights_option
@device_option
@click.option("--max-bytes", type=SizeType(1), default="20MB", show_default=True, help="Larger files are refused.")
@click.option("--max-pixels", type=click.IntRange(1), default=50_000_000, show_default=True, help="And larger images.")
@click.option("--timeout", type=ShareType(1, 3600), default=30, show_default=True, help="Seconds a request.")
@json_option
def serve(
    run: Path, head: str | None, host: str, port: int, weights: str | None, device: str, max_bytes: int, max_pixels: int,
    timeout: float, as_json: bool,
) -> None:  # fmt: skip
    """Serve a run's head: a page to drop images on (DICOM too), and POST /predict for programs. Research use only.

    Each answer has the calibrated probabilities, the class at the operating point, a conformal set, and whether the
    image is unlike the training set; the page shows the activation map and the nearest training images too.
    No file that is sent is kept. Ctrl-C ends it.

    Example:
      hoarfrost serve --run runs/first
      hoarfrost serve --run runs/first --head linear --port 0 --max-bytes 100MB
    """
    from hoarfrost.inference.serve import serve_run
    from hoarfrost.inference.serve.limits import Limits

    limits = Limits(max_bytes=max_bytes, max_pixels=max_pixels, seconds=timeout)
    serve_run(
        run, head, limits, host=host, port=port, weights=weights, device=device,
        on_start=lambda url: emit(as_json, {"url": url}, f"{url}  (research use only; Ctrl-C ends it)"),
    )  # fmt: skip
