"""A run's head as a service on this machine: a page, and an interface for programs."""

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from features.errors import HoarfrostError

if TYPE_CHECKING:
    from pipeline.serve.app import Reader
    from pipeline.serve.limits import Limits

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def serve(
    reader: "Reader", limits: "Limits", *, host: str, port: int, workers: int, on_start: Callable[[str], None]
) -> None:
    """Answer requests until the process is told to stop.

    Parameters
    ----------
    reader : Reader
    limits : Limits
    host : str
        Address to bind to. On loopback, requests must call this host by a name of loopback.
    port : int
        0 takes a free one.
    workers : int
        Threads that decode.
    on_start : callable
        Told the URL.

    Raises
    ------
    HoarfrostError
        If the address cannot be bound, or the extra is missing.
    """
    require_serve()
    import uvicorn

    from pipeline.serve.app import create_app

    listening = _bound(host, port)
    hosts = sorted(LOOPBACK | {"[::1]"}) if host in LOOPBACK else ["*"]
    app = create_app(reader, limits, hosts=hosts, workers=workers)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=5, server_header=False)
    name = f"[{host}]" if ":" in host else host
    on_start(f"http://{name}:{listening.getsockname()[1]}/")
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def require_serve() -> None:
    """Say how to get what the service needs.

    Raises
    ------
    HoarfrostError
        If it is missing.
    """
    try:
        import fastapi_offline  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise HoarfrostError(f"serve needs {error.name}. Install it: pip install 'hoarfrost[serve]'.") from error


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise HoarfrostError(
            f"{host}:{port} cannot be listened at: {error.strerror or error}. Name another --port (0: a free one) or --host."
        ) from error
    return listening
