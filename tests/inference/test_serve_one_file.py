"""`POST /predict` answers for one file, and says whether the head was trained on it."""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi_offline")
pytest.importorskip("httpx")
testclient = pytest.importorskip("starlette.testclient", exc_type=ImportError)

from hoarfrost.inference.serve.app import create_app  # noqa: E402
from tests.inference.test_serve import LIMITS, PNG, StandInReader  # noqa: E402
from tests.support.builders import encode, picture  # noqa: E402


@pytest.fixture
def client() -> Iterator[Any]:
    with testclient.TestClient(create_app(StandInReader(), LIMITS, hosts=["testserver"], workers=1)) as opened:
        yield opened


def test_answer_says_whether_the_head_was_trained_on_the_file(client: Any) -> None:
    for content, is_known in ((PNG, True), (encode(picture(16, 16)), False)):
        assert client.post("/predict", files={"file": ("x.png", content)}).json()["in_training_split"] is is_known


@pytest.mark.parametrize("second", ["file", "other"])
def test_two_files_in_one_request_are_refused(client: Any, second: str) -> None:
    files = [("file", ("a.png", PNG)), (second, ("b.png", PNG))]
    response = client.post("/predict", files=files)
    assert response.status_code == 400
    assert "one image in each request" in response.json()["detail"]
    assert client.post("/predict", files=files[:1]).status_code == 200
