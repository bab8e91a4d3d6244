"""The service's application, with a reader that costs nothing: limits, refusals, batches, the page."""

import asyncio
import io
import json
import socket
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

import hoarfrost.inference.serve
from hoarfrost.features.decoding.images import Decoding
from hoarfrost.features.decoding.isolated import Cancellation
from hoarfrost.features.decoding.looks import load_image
from hoarfrost.features.errors import ImageDecodeError
from tests.support.builders import encode, picture

pytest.importorskip("fastapi_offline")
httpx = pytest.importorskip("httpx")
testclient = pytest.importorskip("starlette.testclient", exc_type=ImportError)

from hoarfrost.inference.serve.answers import About, Answer, Explanation, Neighbour, Threshold  # noqa: E402
from hoarfrost.inference.serve.app import create_app  # noqa: E402
from hoarfrost.inference.serve.batcher import Batcher  # noqa: E402
from hoarfrost.inference.serve.connections import LimitedConnection  # noqa: E402
from hoarfrost.inference.serve.limits import Limits, refuse  # noqa: E402

ABOUT = About(
    head="linear", classes=["benign", "malignant"], positive="malignant", threshold=0.4, weights="random:0",
    thresholds={"malignant": Threshold(rule="Youden's index", value=0.41)}, fingerprint="0" * 64,
    trained_on=1234, coverage=0.9, map_cells=7, max_bytes=100_000, max_pixels=1_000_000,
)  # fmt: skip
LIMITS = Limits(max_bytes=100_000, max_pixels=1_000_000, seconds=30, at_once=8)
PNG = encode(picture())


class StandInReader:
    """Says how bright an image is."""

    about = ABOUT

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.pause = 0.0

    def decode(self, content: bytes, _: Cancellation | None = None) -> torch.Tensor:
        time.sleep(self.pause)
        return load_image(content, Decoding(max_pixels=LIMITS.max_pixels)).expand(3, -1, -1)

    def answer(self, images: Sequence[torch.Tensor]) -> list[Answer]:
        self.batches.append(len(images))
        return [self._answer(float(image.float().mean()) / 255) for image in images]

    def _answer(self, p: float) -> Answer:
        return Answer(
            head="linear", probabilities={"benign": 1 - p, "malignant": p}, called=["malignant" if p > 0.4 else "benign"],
            conformal_set=["benign"], coverage=0.9, distance=1.0, distance_limit=2.0, is_out_of_distribution=False,
        )  # fmt: skip

    def trained_on(self, content: bytes) -> bool | None:
        return content == PNG

    def explain(self, image: torch.Tensor, answer: Answer) -> Answer:
        assert image.shape == (3, 224, 224)
        uri = "data:image/png;base64,"
        nearest = [Neighbour(label="benign", path="a.png", distance=0.5, picture=None)]
        why = Explanation(image=uri, map=uri, map_of="malignant", nearest=nearest)
        return answer.model_copy(update={"explanation": why})


@pytest.fixture
def reader() -> StandInReader:
    return StandInReader()


@pytest.fixture
def client(reader: StandInReader) -> Iterator[Any]:
    app = create_app(reader, LIMITS, hosts=["testserver"], workers=2)
    with testclient.TestClient(app, raise_server_exceptions=False) as client:
        yield client


def post(client: Any, content: bytes, name: str = "x.png", **options: Any) -> Any:
    return client.post("/predict", files={"file": (name, content)}, **options)


def test_image_gets_an_answer_that_says_what_it_is_for(client: Any) -> None:
    response = post(client, PNG)
    assert response.status_code == 200
    answer = response.json()
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert answer["research_use"].startswith("Research use only")
    assert answer["explanation"] is None


def test_explanation_comes_when_it_is_asked_for(client: Any) -> None:
    assert post(client, PNG, params={"explain": "true"}).json()["explanation"]["map_of"] == "malignant"


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.png", PNG)
    return buffer.getvalue()


def bomb() -> bytes:
    """Make a JPEG of 400 megapixels, in a few kilobytes."""
    content = bytearray(encode(picture(16, 16), "JPEG"))
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = (20_000).to_bytes(2, "big") * 2
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "status", "why"),
    [
        (b"", 415, "empty"),
        (b"a text\n" * 9, 415, "no image format recognised"),
        (np.random.default_rng(0).bytes(50_000), 415, "no image format recognised"),
        (zipped(), 415, "no image format recognised"),
        (PNG[: len(PNG) // 2], 415, "truncated"),
        (bomb(), 415, "pixels"),
        (b"x" * 150_000, 413, "at most 0.1 MB"),
        (b"x" * 100_001, 413, "at most 0.1 MB"),
    ],
    ids=["empty", "text", "noise", "zip", "truncated", "bomb", "large", "a little too large"],
)
def test_what_is_no_image_is_refused_with_the_reason_and_the_service_lives(
    client: Any, content: bytes, status: int, why: str
) -> None:
    response = post(client, content)
    assert response.status_code == status
    assert why in response.json()["detail"]
    assert post(client, PNG).status_code == 200


def test_declared_length_is_refused_before_anything_is_read(client: Any) -> None:
    response = client.post("/predict", content=iter(()), headers={"content-length": "999999999"})
    assert response.status_code == 413


def test_body_of_unknown_length_is_counted(client: Any) -> None:
    chunks = (b"--b\r\n" if i == 0 else b"x" * 50_000 for i in range(9))
    response = client.post("/predict", content=chunks, headers={"content-type": "multipart/form-data; boundary=b"})
    assert response.status_code == 413


@pytest.mark.parametrize(
    "request_of",
    [
        lambda client: client.post("/predict"),
        lambda client: client.post("/predict", data={"file": "text"}),
        lambda client: client.post("/predict", files={"other": ("x.png", PNG)}),
        lambda client: client.post("/predict", content=PNG),
        lambda client: client.post("/predict", content=b"--x", headers={"content-type": "multipart/form-data"}),
        lambda client: client.get("/predict"),
        lambda client: client.get("/nowhere"),
    ],
    ids=["nothing", "text field", "other field", "raw body", "broken form", "wrong method", "wrong path"],
)
def test_odd_requests_are_the_clients_mistake(client: Any, request_of: Any) -> None:
    assert request_of(client).status_code in {400, 404, 405}


def test_page_elsewhere_cannot_call_this_host_by_another_name(client: Any) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


@pytest.mark.slow
def test_image_that_takes_too_long_is_given_up(reader: StandInReader) -> None:
    app = create_app(reader, replace(LIMITS, seconds=2), hosts=["testserver"], workers=2)
    with testclient.TestClient(app, raise_server_exceptions=False) as client:
        reader.pause = 2.5
        response = post(client, PNG)
        assert response.status_code == 408
        reader.pause = 0
        time.sleep(2)
        assert post(client, PNG).status_code == 200


def test_too_many_at_a_time_are_asked_to_come_again(client: Any, reader: StandInReader) -> None:
    reader.pause = 0.3
    with ThreadPoolExecutor(20) as pool:
        responses = list(pool.map(lambda _: post(client, PNG), range(20)))
    statuses = {response.status_code for response in responses}
    assert statuses == {200, 429}
    assert all(r.headers["retry-after"] == "1" for r in responses if r.status_code == 429)


def test_requests_that_arrive_together_are_computed_together(client: Any, reader: StandInReader) -> None:
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: post(client, PNG), range(40)))
    assert {response.status_code for response in responses} == {200}
    assert sum(reader.batches) == 40
    assert max(reader.batches) <= 8


def test_failure_of_one_batch_is_told_to_its_own_requests_alone() -> None:
    def compute(items: list[int]) -> list[int]:
        if 13 in items:
            raise RuntimeError("of thirteen")
        return [2 * item for item in items]

    with Batcher(compute, 1) as batcher:
        futures = [batcher.submit(item) for item in (1, 13, 2)]
        assert futures[0].result() == 2
        with pytest.raises(RuntimeError, match="thirteen"):
            futures[1].result()
        assert futures[2].result() == 4


def test_batch_is_what_arrived_meanwhile() -> None:
    sizes, may_go = [], threading.Event()

    def compute(items: list[int]) -> list[int]:
        may_go.wait(60)
        sizes.append(len(items))
        return items

    with Batcher(compute, 4) as batcher:
        futures = [batcher.submit(0)]
        time.sleep(0.1)
        futures += [batcher.submit(item) for item in range(1, 10)]
        may_go.set()
        assert [future.result(60) for future in futures] == list(range(10))
    assert sizes == [1, 4, 4, 1]


def test_nothing_that_is_sent_is_written(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file was made")

    monkeypatch.setattr("tempfile._TemporaryFileWrapper.__init__", written)
    monkeypatch.setattr("tempfile.TemporaryFile", written)
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", written)
    large = encode(picture(170, 170))
    assert 50_000 < len(large) < 100_000
    assert post(client, large).status_code == 200


def test_page_asks_this_host_alone_and_says_what_it_is_for(client: Any) -> None:
    response = client.get("/")
    assert "Research use only" in response.text
    assert "untrained" in response.text
    assert "http" not in response.text.replace("http-equiv", "")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert response.text.count(f'nonce="{nonce}"') == 2
    assert client.get("/").text != response.text


def test_interface_is_documented_without_a_network(client: Any) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/predict"]["post"]
    assert "Research use only" in document["info"]["description"]
    assert set(operation["responses"]) == {"200", "400", "403", "408", "413", "415", "429", "503"}
    page = client.get("/docs").text
    assert "//" not in page.replace("//cdn", "!").replace("http://", "").split("<script>")[0]
    assert client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200


def test_about_names_head_classes_and_fingerprint(client: Any) -> None:
    assert client.get("/about").json()["classes"] == ["benign", "malignant"]


def test_slow_sender_is_not_waited_for(reader: StandInReader) -> None:
    """A body that never ends must not hold a place for ever."""
    app = create_app(reader, Limits(seconds=0.2), hosts=["*"], workers=1)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b"", "root_path": "",
        "headers": [(b"host", b"x"), (b"content-type", b"multipart/form-data; boundary=b")], "http_version": "1.1",
        "scheme": "http", "server": ("x", 80), "client": ("x", 1), "asgi": {"version": "3.0"},
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 60))
    assert sent[0]["status"] == 408


def test_image_reader_refuses_with_its_own_words() -> None:
    with pytest.raises(ImageDecodeError, match="empty"):
        StandInReader().decode(b"")


@contextmanager
def listening(reader: StandInReader, limits: Limits = LIMITS) -> Iterator[str]:
    """Serve over loopback, in a thread."""
    import uvicorn

    app = create_app(reader, limits, hosts=["127.0.0.1"], workers=2)
    server = uvicorn.Server(uvicorn.Config(app, http=LimitedConnection, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_schemathesis_finds_no_answer_that_the_document_does_not_tell(reader: StandInReader) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    with listening(reader) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        statuses = Counter()
        for operation in (found.ok() for found in schema.get_all_operations()):

            @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            @given(case=operation.as_strategy())
            def check(case: Any) -> None:
                response = case.call()
                statuses[response.status_code] += 1
                assert response.status_code < 500
                # Bytes of any kind fit the document, but few are an image.
                case.validate_response(response, excluded_checks=[schemathesis.checks.positive_data_acceptance])

            check()
        with httpx.Client(base_url=url) as client:
            assert post(client, PNG).status_code == 200
    assert sum(statuses.values()) > 60


def test_many_clients_lose_no_request(reader: StandInReader) -> None:
    with listening(reader) as url, ThreadPoolExecutor(8) as pool:
        clients = [httpx.Client(base_url=url) for _ in range(8)]
        responses = list(pool.map(lambda i: post(clients[i % 8], PNG), range(200)))
        for client in clients:
            client.close()
    assert [response.status_code for response in responses] == [200] * 200
    assert len(reader.batches) < 200


def test_url_that_is_told_can_be_followed_at_once() -> None:
    with hoarfrost.inference.serve._bound("127.0.0.1", 0) as listening:
        socket.create_connection(listening.getsockname(), timeout=5).close()


def test_reason_reaches_a_client_that_is_still_sending() -> None:
    """Closed with bytes unread, a connection is reset, and an answer that was on its way is lost with it."""
    sent: list[dict[str, Any]] = []
    parts = [{"type": "http.request", "body": b"x" * 1000, "more_body": i < 9} for i in range(10)]

    async def receive() -> dict[str, Any]:
        assert sent[-1]["body"] != b"", "the connection was closed before all was read"
        return parts.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(refuse(send, 413, "too large", receive))
    assert parts == []
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body", "http.response.body"]
    assert (json.loads(sent[1]["body"]), sent[1]["more_body"]) == ({"detail": "too large"}, True)
    assert not sent[2].get("more_body", False)


def test_client_that_never_stops_sending_is_not_listened_to_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoarfrost.inference.serve.limits, "LINGER_SECONDS", 0.05)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.001)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(asyncio.wait_for(refuse(send, 413, "too large", receive), 5))
    assert len(sent) == 3
