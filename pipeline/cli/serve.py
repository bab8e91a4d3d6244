"""The command that serves a run's head as a page."""

from pathlib import Path

import click

from hoarfrost.cli import options as opts
from hoarfrost.cli.types import ShareType, SizeType


@click.command(cls=opts.Command)
@opts.run
@opts.head
@opts.option("--host", "Address to listen on. 0.0.0.0 listens on all.", default="127.0.0.1")
@opts.option("--port", "Port. 0 chooses a free one.", type=click.IntRange(0, 65535), default=8000)
@opts.option("--max-bytes", "Largest file that is accepted.", group=opts.IMAGES, type=SizeType(1), default="20MB")
@opts.option(
    "--max-pixels", "Largest image that is accepted.",
    group=opts.IMAGES, type=click.IntRange(1), default=50000000,
)  # fmt: skip
@opts.weights
@opts.device
@opts.option(
    "--timeout", "Seconds after which a request is cancelled.",
    group=opts.SPEED, type=ShareType(1, 3600), default=30,
)  # fmt: skip
@opts.json_flag
def serve(
    run: Path, head: str | None, host: str, port: int, weights: str | None, device: str, max_bytes: int, max_pixels: int,
    timeout: float, as_json: bool,
) -> None:  # fmt: skip
    """Serve a head as a web page that predicts dropped images, and as POST /predict for programs.

    Each answer has the calibrated probabilities, the class at the operating point, a conformal set, and whether the
    image is unlike the training images. The page also shows the activation map and the nearest training images.
    DICOM files work too. Uploaded files are not kept. Ctrl-C stops the server. Research use only.

    Example:
      $ hoarfrost serve --run runs/first
      http://127.0.0.1:8000  (research use only; Ctrl-C stops it)

    More examples:
      hoarfrost serve --run runs/first --head linear --port 0 --max-bytes 100MB
    """
    from hoarfrost.inference.serve import serve_run
    from hoarfrost.inference.serve.limits import Limits

    limits = Limits(max_bytes=max_bytes, max_pixels=max_pixels, seconds=timeout)
    serve_run(
        run, head, limits, host=host, port=port, weights=weights, device=device,
        on_start=lambda url: opts.emit(as_json, {"url": url}, f"{url}  (research use only; Ctrl-C stops it)"),
    )  # fmt: skip
