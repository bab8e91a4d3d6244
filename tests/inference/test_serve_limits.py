"""What a client may cost the service: connections, work that nobody waits for, requests from pages elsewhere."""

import contextlib
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi_offline")
httpx = pytest.importorskip("httpx")

import hoarfrost.features.decoding.isolated as isolated  # noqa: E402
import hoarfrost.inference.serve.connections as connections  # noqa: E402
from hoarfrost.features.decoding.images import Decoding  # noqa: E402
from hoarfrost.features.decoding.isolated import Cancellation, decode_with_header  # noqa: E402
from hoarfrost.features.decoding.looks import load_image  # noqa: E402
from hoarfrost.inference.serve.limits import Limits  # noqa: E402
from tests.inference.test_serve import LIMITS, PNG, StandInReader, listening, post  # noqa: E402
from tests.support.slow_images import jpeg_of_scans  # noqa: E402

HALF = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: "


class IsolatingReader(StandInReader):
    def decode(self, content: bytes, cancellation: Cancellation | None = None) -> torch.Tensor:
        pixels = decode_with_header(content, 0, 10_000_000, None, seconds=30.0, cancellation=cancellation)[0]
        return load_image(pixels, Decoding()).expand(3, -1, -1)


def address_of(url: str) -> tuple[str, int]:
    return "127.0.0.1", int(url.rpartition(":")[2])


def test_half_sent_headers_block_nobody_and_are_closed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 1.0)
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 50)
    with listening(StandInReader()) as url, caplog.at_level(logging.WARNING):
        halves = [socket.create_connection(address_of(url), timeout=60) for _ in range(120)]
        for half in halves:
            half.sendall(HALF)
        with httpx.Client(base_url=url) as client:
            assert post(client, PNG).status_code == 200
        deadline = time.monotonic() + 60
        for half in halves:
            half.settimeout(max(0.1, deadline - time.monotonic()))
            with contextlib.suppress(ConnectionResetError):
                assert half.recv(1) == b""
            half.close()
    assert sum(len(record.getMessage()) for record in caplog.records) < 1000


def test_half_sent_second_request_is_closed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    with listening(StandInReader()) as url, socket.create_connection(address_of(url), timeout=60) as client:
        client.sendall(b"GET /about HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
        client.sendall(HALF)
        while client.recv(1 << 16):
            pass


@pytest.mark.slow
def test_slow_images_whose_clients_left_are_not_computed() -> None:
    limits = Limits(max_bytes=2_000_000, max_pixels=10_000_000, seconds=30, at_once=8)
    slow = jpeg_of_scans(50_000)
    with listening(IsolatingReader(), limits) as url:
        with httpx.Client(base_url=url, timeout=60) as client:
            assert post(client, PNG).status_code == 200  # the decoder's process has started

        def leave(_: int) -> None:
            with (
                httpx.Client(base_url=url, timeout=httpx.Timeout(60, read=1)) as leaving,
                pytest.raises(httpx.ReadTimeout),
            ):
                post(leaving, slow, "slow.jpg")

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(leave, range(6)))
        started = time.monotonic()
        with httpx.Client(base_url=url, timeout=60) as client:
            assert post(client, PNG).status_code == 200
        assert time.monotonic() - started < 3


def test_where_no_process_can_decode_the_image_is_not_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    isolated.close_idle()
    monkeypatch.setattr(isolated, "COMMAND", ("/nowhere/python",))
    with listening(IsolatingReader()) as url, httpx.Client(base_url=url) as client:
        response = post(client, PNG)
    assert (response.status_code, "could be started" in response.json()["detail"]) == (503, True)


def test_one_client_cannot_keep_out_the_others() -> None:
    reader = StandInReader()
    reader.pause = 0.5
    limits = Limits(max_bytes=100_000, seconds=5, at_once=8, at_once_per_client=2)
    with listening(reader, limits) as url, ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(lambda _: httpx.post(f"{url}/predict", files={"file": PNG}).status_code, range(6)))
    assert sorted(set(statuses)) == [200, 429]
    assert statuses.count(200) <= 4


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://localhost"])
def test_page_of_another_origin_is_refused(origin: str) -> None:
    with listening(StandInReader()) as url, httpx.Client(base_url=url) as client:
        response = post(client, PNG, headers={"origin": origin})
        assert (response.status_code, "another origin" in response.json()["detail"]) == (403, True)
        assert post(client, PNG, headers={"origin": url}).status_code == 200


def test_bad_field_is_400_with_its_name() -> None:
    with listening(StandInReader(), LIMITS) as url, httpx.Client(base_url=url) as client:
        response: Any = post(client, PNG, params={"explain": "perhaps"})
        assert response.status_code == 400
        assert "query.explain" in response.json()["detail"]
        assert "422" not in client.get("/openapi.json").text
