"""Join a Ray cluster, or start Ray on this machine alone; and find the slots for workers.

Four things here are not in Ray's public interface, which has nothing for these purposes:

- `CLUSTER_ID`, the call that Ray itself makes first. `ray.init` tries for two minutes and then ends the process if
  nothing answers, something else does, or the token is wrong; a user should know within seconds.
- `NOTED_CLUSTER`, where `ray start` writes its address: `ray.init("auto")` reads it, but does not report what it found.
- `RAY_THREADS`, the names of Ray's threads: they print about workers and hosts that died into the output of `--json`,
  with any `log_to_driver` and `logging_level`.
- `LOOPBACK_ONLY`, an environment variable: `ray.init` has no argument for it.
"""

import importlib.util
import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.extraction.engines import RayOptions

INSTALL = "pip install 'hoarfrost[ray]'"
CONNECT_SECONDS = 5.0  # Ray itself would try for two minutes, and then end the process
CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # what Ray itself asks a cluster's head first
NOTED_CLUSTER = Path("ray", "ray_current_cluster")  # below Ray's temporary folder
AUTH_MODE, AUTH_TOKEN, AUTH_TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
QUIET = {"log_to_driver": False, "logging_level": "ERROR"}
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray would send usage statistics to its makers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's future default; until then it warns
}
RAY_THREADS = "ray_"
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # else Ray replaces the loopback's address by the network's
OTHER_LOOPBACK = "127.0.0.2"  # reaches what listens on all addresses, but not what listens on 127.0.0.1 alone


class Slot(NamedTuple):
    """Room for one worker: its number on a host, and its share of the host."""

    node_id: str
    host: str
    number: int
    cpus: int
    gpus: float


def is_installed() -> bool:
    """Return whether Ray can be imported, without importing it."""
    return importlib.util.find_spec("ray") is not None


def check_address(address: str | None) -> None:
    """Raise HoarfrostError if no Ray cluster answers at an address and accepts this machine's token.

    It takes seconds; Ray itself would try for minutes.
    """
    found = _resolved(address)
    if found in {None, "auto"}:
        return
    host, port = _host_and_port(str(found))
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:  # the last for what cannot be a host's name
        raise _no_cluster(str(found), str(error)) from error
    if not os.environ.get("RAY_USE_TLS"):
        _use_token_if_wanted(str(found))


def _use_token_if_wanted(address: str) -> None:
    """Use a token if and only if the cluster needs one: Ray decides this itself only for the address "auto"."""
    mode = os.environ.get(AUTH_MODE)
    if _accepts(address, None):
        if mode == "token":
            raise HoarfrostError(
                f"--address {address}: the Ray cluster uses no tokens, but {AUTH_MODE}=token is set here. Unset it."
            )
        return
    token = _token()
    if token is None or mode == "disabled" or not _accepts(address, token):
        wrong = "missing" if token is None else "a different one"
        raise HoarfrostError(
            f"--address {address}: the Ray cluster needs a token. Here it is "
            f"{f'switched off by {AUTH_MODE}' if mode == 'disabled' else wrong}. Copy ~/.ray/auth_token from the cluster's "
            f"head to this machine, or pass the token in {AUTH_TOKEN}."
        )
    os.environ[AUTH_MODE] = "token"


def _token() -> str | None:
    """Return the token from the places where Ray looks for it."""
    if token := os.environ.get(AUTH_TOKEN):
        return token.strip()
    try:
        path = Path(os.environ.get(AUTH_TOKEN_PATH) or Path.home() / ".ray" / "auth_token")
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, RuntimeError, UnicodeDecodeError):  # RuntimeError: no home folder
        return None


def _accepts(address: str, token: str | None) -> bool:
    """Return whether a cluster's head accepts this token; raise HoarfrostError if what answers is not Ray."""
    import grpc

    sent = None if token is None else [("authorization", f"Bearer {token}")]
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(CLUSTER_ID)(b"", timeout=CONNECT_SECONDS, metadata=sent)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return False
            raise _no_cluster(address, "what listens there is not Ray") from error
    return True


def _resolved(address: str | None) -> str | None:
    """Return the address that "auto" means: RAY_ADDRESS, else the cluster that `ray start` noted on this machine."""
    if address != "auto":
        return address
    noted = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / NOTED_CLUSTER
    try:
        return os.environ.get("RAY_ADDRESS") or noted.read_text(encoding="utf-8").strip() or address
    except OSError:
        return address  # Ray then looks for its own processes


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or "/" in host:
        raise HoarfrostError(
            f"--address {address}: expected auto, or HOST:PORT of the cluster's head as `ray start --head` prints it."
        )
    return host.strip("[]"), int(port)


def _is_loopback_only(address: str) -> bool:
    """Return whether a cluster is only on this machine's loopback, while Ray would look for it on the network."""
    host, port = _host_and_port(address)
    if host not in {"localhost", "127.0.0.1"}:
        return False
    try:
        with socket.create_connection((OTHER_LOOPBACK, port), CONNECT_SECONDS):
            return False
    except OSError:
        return True


def _no_cluster(address: str, reason: str) -> HoarfrostError:
    return HoarfrostError(
        f"--address {address}: no Ray cluster answers there ({reason}). Start its head with `ray start --head`, join this "
        "machine to it with `ray start --address HOST:PORT`, or omit --address to use this machine alone."
    )


@contextmanager
def connected(address: str | None) -> Iterator[str]:
    """Join a cluster, or start Ray on this machine alone, until the context ends; yield the address of its dashboard, or "".

    Raise HoarfrostError if that is not possible.
    """
    address = _resolved(address)
    is_on_loopback = address is None or (address != "auto" and _is_loopback_only(address))
    for name, value in {**ENVIRONMENT, **(LOOPBACK_ONLY if is_on_loopback else {})}.items():
        os.environ.setdefault(name, value)
    import ray  # which reads the environment

    if ray.is_initialized():  # a program that uses this library may have joined a cluster itself
        yield ""
        return
    with redirect_stdout(_StdoutWithoutRay(sys.stdout)) as stdout:
        with _signal_handler_kept():
            try:
                dashboard = _start(address)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise _no_cluster(address or "(this machine)", " ".join(str(error).split())) from error
        try:
            yield dashboard
        finally:
            stdout.silent = threading.current_thread()  # when Ray ends, it prints late messages in its caller's thread
            with _signal_handler_kept():
                ray.shutdown()


class _StdoutWithoutRay(io.TextIOBase):
    """The standard output without Ray's own lines about workers and hosts that died, which no option of Ray prevents."""

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout
        self.silent: threading.Thread | None = None

    def write(self, text: str) -> int:
        """Write a text, unless Ray prints it."""
        thread = threading.current_thread()
        is_rays = thread is self.silent or thread.name.startswith(RAY_THREADS)
        return len(text) if is_rays else self._stdout.write(text)

    def flush(self) -> None:
        """Flush the standard output."""
        self._stdout.flush()


def _start(address: str | None) -> str:
    """Start Ray, or join a cluster; return the address of its dashboard, or an empty text."""
    import ray

    if address is None:
        from hoarfrost.features.processors import usable_cpus

        context = ray.init(address="local", num_cpus=usable_cpus(), **QUIET)
    else:
        context = ray.init(address=address, **QUIET)
    return f"http://{context.dashboard_url}" if context.dashboard_url else ""


@contextmanager
def _signal_handler_kept() -> Iterator[None]:
    """Restore SIGTERM's handler: Ray's would end the process at once and commit nothing."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            signal.signal(signal.SIGTERM, before)


def has_gpus() -> bool:
    """Return whether any host of the cluster has a GPU."""
    return any(node["Resources"].get("GPU", 0) for node in _nodes())


def slots(own: RayOptions, device: str) -> list[Slot]:
    """Return the room for workers on all present hosts, one on each host before a second on any.

    It may exceed `max_workers`: the caller must know which hosts take part.
    """
    by_host = [_slots_of(node, own, device) for node in _nodes()]
    return [slot for slot in chain.from_iterable(zip_longest(*by_host)) if slot is not None]


def _nodes() -> list[dict[str, Any]]:
    import ray

    return sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: str(node["NodeID"]))


def _slots_of(node: dict[str, Any], own: RayOptions, device: str) -> list[Slot]:
    """Divide a host into room for workers: by GPUs if these embed, else by CPUs."""
    n_cpus, n_gpus = node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)
    if device == "cuda":
        gpus = own.gpus_per_worker or 1.0
        n_slots = int(n_gpus / gpus + 1e-6) if n_cpus >= 1 else 0  # three thirds are one
        # With more workers than CPUs, no CPU is counted for them: otherwise a GPU would stay idle.
        cpus = own.cpus_per_worker or int(n_cpus / max(1, n_slots))
        n_slots = min(n_slots, int(n_cpus / cpus)) if cpus else n_slots
    else:
        gpus, cpus = 0.0, own.cpus_per_worker or max(1, int(n_cpus))
        n_slots = int(n_cpus / cpus)
    host = str(node["NodeManagerHostname"])
    return [Slot(str(node["NodeID"]), host, number, cpus, gpus) for number in range(n_slots)]
