"""A run's head as a service on this machine: a page, and an interface for programs."""

import logging
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from hoarfrost.features.errors import HoarfrostError

if TYPE_CHECKING:
    from hoarfrost.inference.serve.app import Reader
    from hoarfrost.inference.serve.limits import Limits

logger = logging.getLogger(__name__)

BACKLOG = 2048
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def serve_run(
    run: Path, head: str | None, limits: "Limits", *, host: str, port: int, weights: str | None, device: str,
    on_start: Callable[[str], None],
) -> None:  # fmt: skip
    """Serve a run's head until the process is stopped.

    `head` is one of the run's heads; None is the selected one. `host` is the address to listen on; on loopback, requests
    must use a loopback name of this host. Port 0 chooses a free one. `weights` is where the backbone's weights are now, if
    they were moved. `on_start` is called with the URL.

    Raises
    ------
    HoarfrostError
        If the run, its weights or the address cannot be used, or the extra is missing.
    """
    require_serve()
    from hoarfrost.inference.serve.reader import opened_reader

    notes: list[str] = []
    with opened_reader(run, head, limits, weights=weights, device=device, notes=notes) as reader:
        for note in notes:
            logger.warning("%s", note)
        if host not in LOOPBACK:
            logger.warning("%s can be reached from other machines, without a password and without encryption.", host)
        _serve(reader, limits, host, port, on_start)


def _serve(reader: "Reader", limits: "Limits", host: str, port: int, on_start: Callable[[str], None]) -> None:
    import uvicorn

    from hoarfrost.features.processors import usable_cpus
    from hoarfrost.inference.serve.app import create_app
    from hoarfrost.inference.serve.connections import LimitedConnection

    listening = _bound(host, port)
    hosts = sorted(LOOPBACK | {"[::1]"}) if host in LOOPBACK else ["*"]
    app = create_app(reader, limits, hosts=hosts, workers=usable_cpus())
    config = uvicorn.Config(
        app, http=LimitedConnection, log_level="warning", access_log=False, timeout_keep_alive=5, server_header=False,
        backlog=BACKLOG,
    )  # fmt: skip
    name = f"[{host}]" if ":" in host else host
    on_start(f"http://{name}:{listening.getsockname()[1]}/")
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def require_serve() -> None:
    """Raise HoarfrostError if a package is missing that the service needs."""
    try:
        import fastapi_offline  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise HoarfrostError(f"serve needs {error.name}. Install it: pip install 'hoarfrost[serve]'.") from error


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as stack:
            listening = stack.enter_context(socket.socket(family, kind))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(
                BACKLOG
            )  # before the URL is printed: a client that follows it at once waits, and is not refused
            stack.pop_all()
    except OSError as error:
        raise HoarfrostError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}. Choose another --port (0: a free one) or --host."
        ) from error
    return listening
