"""Which engine embeds, with which options, and the messages if it is not available."""

import http.server
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import click
import pytest
from click.testing import CliRunner

import hoarfrost.features.devices
import hoarfrost.features.extraction.buffers
import hoarfrost.features.extraction.cluster
import hoarfrost.features.extraction.local
import hoarfrost.features.extraction.loop
from hoarfrost.cli import options as opts
from hoarfrost.features.errors import HoarfrostError, Reason
from hoarfrost.features.extraction.cluster import RayEngine, connection, engine
from hoarfrost.features.extraction.cluster.actors import Started, WorkerLostError, short_reason
from hoarfrost.features.extraction.cluster.connection import (
    AUTH_MODE,
    AUTH_TOKEN,
    AUTH_TOKEN_PATH,
    CLUSTER_ID,
    Slot,
    check_address,
)
from hoarfrost.features.extraction.engines import ENGINES, EngineOptions, LocalOptions, RayOptions
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.job import Job
from hoarfrost.features.extraction.local import LocalEngine
from hoarfrost.features.extraction.plan import ExtractOptions, LoopCounts
from tests.support.builders import write_image_folder
from tests.support.commands import Hoarfrost

RANDOM = {"weights": "random:0", "precision": "float32", "batch_size": 2}


@pytest.fixture
def images(tmp_path: Path, free_backbone: None) -> Path:  # noqa: ARG001 - for what it does
    return write_image_folder(tmp_path / "images", {"a": 3, "b": 3})


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))


# -- Ray that is missing, or not there ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_ray")
def test_ray_that_is_not_installed_is_named_with_the_command_that_installs_it(
    images: Path,
    hoarfrost: Hoarfrost,
) -> None:
    done = hoarfrost("extract", images, "--cache", images / "c.h5", "--engine", "ray")
    assert done.status == 1
    assert "--engine ray needs Ray, which is not installed. Install it on every host: pip install" in done.stderr
    assert not (images / "c.h5").exists()


@pytest.fixture
def web_port() -> Iterator[int]:
    """Yield the port of something that answers, and is not Ray."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_an_address_where_nobody_answers_is_refused_within_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(HoarfrostError, match=r"127.0.0.1:9: no Ray cluster answers there .*ray start --head"):
        check_address("127.0.0.1:9")
    assert time.monotonic() - started < 30  # Ray itself tries for two minutes


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "no.such.invalid"])
def test_a_host_that_cannot_be_is_refused(host: str) -> None:
    with pytest.raises(HoarfrostError, match="no Ray cluster answers there"):
        check_address(f"{host}:6379")


def test_an_address_where_another_program_answers_is_refused(web_port: int) -> None:
    with pytest.raises(HoarfrostError, match="what listens there is not Ray"):
        check_address(f"127.0.0.1:{web_port}")


@contextmanager
def head(token: str | None) -> Iterator[str]:
    """Serve as a cluster's head that needs this token, or none."""
    grpc = pytest.importorskip("grpc")

    def cluster_id(_: bytes, context: Any) -> bytes:
        if token is not None and ("authorization", f"Bearer {token}") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    service, method = CLUSTER_ID.strip("/").split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(cluster_id)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of Ray's token, in a home folder of its own; token settings are restored after the test."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (AUTH_MODE, AUTH_TOKEN, AUTH_TOKEN_PATH):
        monkeypatch.setenv(name, "")  # so that it is restored, whatever the test leaves
        monkeypatch.delenv(name)
    (tmp_path / ".ray").mkdir()
    return tmp_path / ".ray" / "auth_token"


def test_a_token_is_used_where_the_cluster_wants_it_and_not_where_it_does_not(at_home: Path) -> None:
    at_home.write_text("secret\n")
    with head(None) as address:
        check_address(address)
        assert AUTH_MODE not in os.environ
    with head("secret") as address:
        check_address(address)
        assert os.environ[AUTH_MODE] == "token"


@pytest.mark.parametrize(
    ("written", "mode", "reason"),
    [
        (None, None, "missing"),
        ("other", None, "a different one"),
        ("secret", "disabled", "switched off by RAY_AUTH_MODE"),
    ],
)
def test_a_token_that_is_not_that_of_the_cluster_is_refused_with_the_way_out(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, written: str | None, mode: str | None, reason: str
) -> None:
    if written is not None:
        at_home.write_text(written)
    if mode is not None:
        monkeypatch.setenv(AUTH_MODE, mode)
    with head("secret") as address, pytest.raises(HoarfrostError, match=f"{reason}.*Copy ~/.ray/auth_token"):
        check_address(address)


@pytest.mark.usefixtures("at_home")
def test_a_token_asked_for_by_hand_is_refused_where_the_cluster_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTH_MODE, "token")
    with head(None) as address, pytest.raises(HoarfrostError, match="uses no tokens, but RAY_AUTH_MODE=token"):
        check_address(address)


@pytest.mark.parametrize("address", ["nonsense", "host:", ":1", "ray://127.0.0.1:10001", "host:port", "host:²", ""])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(HoarfrostError, match="expected auto, or HOST:PORT"):
        check_address(address)


def test_a_noted_cluster_that_is_gone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9\n")
    with pytest.raises(HoarfrostError, match=r"127.0.0.1:9: no Ray cluster answers there"):
        check_address("auto")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:19")
    with pytest.raises(HoarfrostError, match=r"127.0.0.1:19: no Ray cluster answers there"):
        check_address("auto")


@pytest.mark.parametrize(
    ("said", "is_last", "reason"),
    [
        ("The actor died unexpectedly.\n\tclass_name: Worker", False, "The actor died unexpectedly"),
        ("ValueError: one\ntwo", False, "ValueError: one"),
        (
            "The actor died because of an error raised in its creation task, W\n  ^^\nModuleNotFoundError: No module 'x'",
            True,
            "ModuleNotFoundError: No module 'x'; the same hoarfrost must be installed on each host",
        ),
        (
            "ModuleNotFoundError: No module named 'torch'",
            False,
            "ModuleNotFoundError: No module named 'torch'; the same hoarfrost must be installed on each host",
        ),
    ],
)
def test_the_end_of_a_worker_is_reported_in_a_line_that_says_why(said: str, is_last: bool, reason: str) -> None:
    assert short_reason(said, is_last=is_last) == reason


def test_a_cluster_of_another_version_is_reported_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "Version mismatch: The cluster was started with:\n    Ray: 2.9\nThis process was started with:\n    Ray: 2.40"
    )
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.setattr(connection, "_start", raises(RuntimeError(said)))
    with pytest.raises(HoarfrostError, match=r"started with: Ray: 2.9 This process was started with: Ray: 2.40"):
        connection.connected(None).__enter__()


def raises(error: Exception) -> Callable[..., None]:
    def raising(*_: object) -> None:
        raise error

    return raising


# -- who chooses the precision ------------------------------------------------------------------------------------------


class Hosts:
    """Replaces `hoarfrost.features.extraction.cluster.actors`: hosts that choose, are lost, or do not answer."""

    def __init__(self, *answers: str | Exception | None) -> None:
        self.slots = [Slot(str(i), f"host {i}", 0, 1, 0.0) for i in range(len(answers))]
        self._answers = answers
        self.ended: list[int] = []

    def start(self, slot: Slot) -> Started:
        return Started(slot.host, slot, int(slot.node_id))

    def ask(self, actor: int, *_: object) -> int:
        return actor

    def answered(self, asked: list[int], _: float) -> list[int]:
        return [each for each in asked if self._answers[each] is not None]

    def result_of(self, asked: int) -> str:
        answer = self._answers[asked]
        if isinstance(answer, Exception):
            raise answer
        assert answer is not None
        return answer

    def end(self, actor: int) -> None:
        self.ended.append(actor)


def chosen(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(engine, "actors", hosts)
    monkeypatch.setattr(connection, "slots", lambda *_: hosts.slots)
    monkeypatch.setattr(connection, "connected", lambda _: nullcontext(""))
    options = ExtractOptions(device="cpu", precision="auto")
    with RayEngine(RayOptions(), options) as cluster:
        return cluster.choose_precision()


@pytest.mark.parametrize(
    ("hosts", "n_asked"),
    [
        (Hosts("bfloat16", "float32"), 1),
        (Hosts(None, "bfloat16", "float32"), 2),
        (Hosts(WorkerLostError("gone"), "bfloat16"), 2),
        (Hosts(WorkerLostError("gone"), None, WorkerLostError("gone"), "bfloat16"), 4),
    ],
)
def test_the_first_host_that_answers_chooses_the_precision_and_no_worker_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, hosts: Hosts, n_asked: int
) -> None:
    assert chosen(hosts, monkeypatch) == "bfloat16"
    assert sorted(hosts.ended) == list(range(n_asked))


def test_hosts_that_are_all_lost_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HoarfrostError, match="host 1: no worker could be started there: gone"):
        chosen(Hosts(WorkerLostError("gone"), WorkerLostError("gone")), monkeypatch)


# -- options ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option", [("--address", "auto"), ("--gpus-per-worker", "0.5"), ("--cpus-per-worker", "2"), ("--max-workers", "3")]
)
@pytest.mark.parametrize("engine", [(), ("--engine", "local")])
def test_an_option_of_rays_without_ray_is_wrong_usage(
    hoarfrost: Hoarfrost, option: tuple[str, ...], engine: tuple[str, ...]
) -> None:
    done = hoarfrost("extract", "images", "--cache", "c.h5", *option, *engine)
    assert done.status == 2
    assert f"{option[0]} is for --engine ray" in done.stderr


@pytest.mark.parametrize("option", [("--gpus-per-worker", "0"), ("--gpus-per-worker", "2"), ("--max-workers", "0")])
def test_shares_and_numbers_that_make_no_sense_are_wrong_usage(hoarfrost: Hoarfrost, option: tuple[str, ...]) -> None:
    assert hoarfrost("extract", "images", "--cache", "c.h5", "--engine", "ray", *option).status == 2


def test_the_summary_names_the_engine_and_its_workers(images: Path) -> None:
    options = ExtractOptions(device="cpu", **RANDOM)  # type: ignore[arg-type]
    first = extract(images, images.parent / "c.h5", options=options)
    assert (first.engine, first.workers) == ("local", 1)
    assert extract(images, images.parent / "c.h5", options=options).workers == 0


# -- an engine of one's own ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FakeOptions(EngineOptions):
    name = "fake"
    implementation = f"{__name__}:FakeEngine"
    pace: int | None = None


class FakeEngine:
    """Embeds as the local engine does, and notes what is called."""

    calls: "list[str]"

    def __init__(self, own: FakeOptions, options: ExtractOptions) -> None:
        FakeEngine.calls = [f"pace {own.pace}, on {options.device}"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append("ended")

    def start_early(self) -> None:
        self.calls.append("started early")

    def choose_precision(self) -> str:
        self.calls.append("chose")
        return "float32"

    def embed(self, job: Job, todo: list[int]) -> LoopCounts:
        self.calls.append(f"embed {len(todo)}")
        return LocalEngine(LocalOptions(), job.options).embed(job, todo)


def test_an_engine_is_registered_by_one_entry(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "fake", FakeOptions)
    options = ExtractOptions(device="cpu", engine=FakeOptions(3), weights="random:0")
    found = extract(images, images.parent / "c.h5", options=options)
    assert (found.engine, found.embedded) == ("fake", 6)
    assert FakeEngine.calls == ["pace 3, on cpu", "started early", "chose", "embed 6", "ended"]

    @click.command()
    @opts.engine
    def command(engine: EngineOptions) -> None:
        click.echo(repr(engine))

    asked = ["--engine", "fake"]
    assert CliRunner().invoke(command, asked).output == f"{FakeOptions()!r}\n"
    refused = CliRunner().invoke(command, [*asked, "--address", "auto"])
    assert (refused.exit_code, "--address is for --engine ray" in refused.output) == (2, True)


# -- several GPUs -------------------------------------------------------------------------------------------------------


class Several:
    """Replaces `RayEngine`, and records the calls."""

    asked: "list[tuple[RayOptions, ExtractOptions, int]]"

    def __init__(self, own: RayOptions, options: ExtractOptions) -> None:
        self.own, self.options = own, options

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def embed(self, job: Job, todo: list[int]) -> LoopCounts:
        Several.asked.append((self.own, self.options, len(todo)))
        for index in todo:
            job.table.errors[index] = Reason("no GPU", "none of these GPUs is real")
        return LoopCounts("cuda", workers=3)


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    Several.asked = []
    monkeypatch.setattr(hoarfrost.features.devices, "choose_device", lambda *_: "cuda")
    monkeypatch.setattr(hoarfrost.features.devices, "n_gpus", lambda: 3)
    monkeypatch.setattr(hoarfrost.features.extraction.local, "LEAST_FOR_ALL_GPUS", 4)
    monkeypatch.setattr(hoarfrost.features.extraction.cluster, "RayEngine", Several)
    monkeypatch.setattr(
        "hoarfrost.features.extraction.buffers.host_tensor",
        lambda shape, dtype, **_: hoarfrost.features.extraction.buffers.torch.empty(shape, dtype=dtype),
    )


@pytest.mark.usefixtures("three_gpus")
def test_one_machine_with_several_gpus_uses_all_of_them_by_the_same_means(images: Path) -> None:
    with pytest.raises(HoarfrostError, match="none of these GPUs is real"):
        extract(images, images.parent / "c.h5", options=ExtractOptions(device="cuda", **RANDOM))  # type: ignore[arg-type]
    [(own, options, n_images)] = Several.asked
    assert (options.engine, own, options.device, n_images) == (LocalOptions(), RayOptions(), "cuda", 6)


@pytest.mark.usefixtures("three_gpus", "without_ray")
def test_gpus_that_stay_idle_without_ray_are_reported_with_what_that_costs(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done = extract(images, images.parent / "c.h5", options=ExtractOptions(device="cuda", **RANDOM))  # type: ignore[arg-type]
    assert (done.embedded, done.workers) == (6, 1)
    assert Several.asked == []
    assert "Only one of this machine's 3 GPUs is used" in caplog.text
    assert "about 3 times as fast. Install it: pip install 'hoarfrost[ray]'" in caplog.text


@pytest.mark.usefixtures("three_gpus")
def test_fewer_images_than_repay_the_start_of_several_workers_are_embedded_on_one_gpu(
    images: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ExtractOptions(**{**RANDOM, "device": "cuda", "batch_size": 3})  # type: ignore[arg-type]
    monkeypatch.setattr(hoarfrost.features.extraction.local, "LEAST_FOR_ALL_GPUS", 7)
    assert extract(images, images.parent / "c.h5", options=options).embedded == 6
    assert Several.asked == []
    assert "GPUs" not in caplog.text
