"""`make bench` writes the table of docs/performance.md: new rows for what ran, the old ones for what did not."""

import logging
import os
import re
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu, ten_million
from tests.benchmarks.__main__ import GROUPS, PAGE, WEIGHTS, nothing_kept
from tests.benchmarks.measurement import Measurement
from tests.benchmarks.table import BEGIN, END, HEAD, _rows_of, row, updated
from tests.support.commands import ROOT

TEXT = f"# Title\n\n{BEGIN}\n{HEAD}\n{END}\n\nmore\n"


def line(what: str, measured: str = "1 s", demanded: str = "2 s") -> str:
    return row(Measurement(what, measured, demanded), "none")


def test_rows_and_machine_come_between_the_comments_and_nothing_else_changes() -> None:
    text = updated(TEXT, "2 cores", {"cache.kills": [line("kills", demanded="")], "heads.stack": [line("stack")]})
    assert text == (
        f"# Title\n\n{BEGIN}\nOn 2 cores.\n\n{HEAD}\n| kills | none | 1 s | <!-- cache.kills --> |\n"
        f"| stack | none | 1 s | 2 s <!-- heads.stack --> |\n{END}\n\nmore\n"
    )
    assert updated(text, "2 cores", {"heads.stack": [line("stack")]}) == text


def test_only_what_ran_is_replaced_whatever_it_measured_before() -> None:
    text = updated(TEXT, "2 cores", {"a.one": [line("F 50"), line("F 60")], "b": [line("b")]})
    text = updated(text, "2 cores", {"a.one": [line("F 70")], "c": [line("c")]})
    rows = [f"| {what} | none | 1 s | 2 s <!-- {of} --> |" for what, of in (("F 70", "a.one"), ("b", "b"), ("c", "c"))]
    assert [each for lines in _rows_of(text).values() for each in lines] == rows


def test_rows_of_another_machine_are_told_apart() -> None:
    text = updated(TEXT, "2 cores", {"a": [line("a")], "b": [line("b")]})
    assert "\nOn 9 cores. Rows other than b: on 2 cores.\n" in updated(text, "9 cores", {"b": [line("b")]})
    both = updated(updated(text, "9 cores", {"b": [line("b")]}), "9 cores", {"c": [line("c")]})
    assert "\nOn 9 cores. Rows other than b, c: on 2 cores.\n" in both
    assert "\nOn 9 cores.\n" in updated(text, "9 cores", {"a": [line("a")], "b": [line("b")]})


@pytest.mark.parametrize("text", ["", BEGIN, END + BEGIN, BEGIN + BEGIN + END, BEGIN + END + END])
def test_a_text_without_its_comments_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="bench:begin.*once each"):
        updated(text, "2 cores", {})


def test_every_row_of_the_table_is_of_a_measurement_that_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    names = {f"{group}.{name}" for group, measurements in GROUPS.items() for name in measurements}
    assert _rows_of(text.partition(BEGIN)[2].partition(END)[0]).keys() <= names
    assert set(WEIGHTS) <= names | set(GROUPS)


def test_a_measurement_finds_nothing_of_earlier_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/me/.cache")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with nothing_kept(tmp_path):
        assert os.environ["XDG_CACHE_HOME"].startswith(str(tmp_path))
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(tmp_path))
    assert os.environ["XDG_CACHE_HOME"] == "/home/me/.cache"
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_what_a_driver_does_with_ten_million_rows_it_does_with_fewer(tmp_path: Path) -> None:
    """A benchmark that is seldom run must not break unseen."""
    n = 70_000  # no chunk may be larger than what it is of
    ten_million.write_csv(tmp_path / "large.csv", n)
    ten_million.write_cache(tmp_path / "c.h5", str(tmp_path.resolve()), n * 99 // 100)
    found = ten_million.measure(tmp_path / "large.csv", tmp_path / "c.h5", n)
    assert found["to_do"] == found["not_in_cache"] == n // 100


def test_every_row_that_the_text_cites_is_in_the_table() -> None:
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    names = {f"{group}.{name}" for group, measurements in GROUPS.items() for name in measurements}
    cited = names & set(re.findall(r"`(\w+\.\w+)`", "".join(texts)))
    assert cited >= {"scale.driver", "scale.shards", "cluster.scaling"}
    assert {name for name in cited if f"<!-- {name} -->" not in table} == set()


@pytest.mark.parametrize(
    ("is_there", "failure", "said"),
    [(False, "", "torch finds no CUDA device"), (True, "no kernel image", "No usable GPU: no kernel image")],
)
def test_without_a_gpu_its_benchmark_says_so_and_measures_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_there: bool, failure: str, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
    monkeypatch.setattr(gpu, "gpu_failure", lambda: failure)
    assert gpu.main() == 1
    output = capsys.readouterr()
    assert said in output.err
    assert output.out == ""


def test_heads_of_the_gpu_benchmark_are_as_many_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "N_HEADS", 20)
    monkeypatch.setattr(gpu, "N_ROWS", 60)
    monkeypatch.setattr(gpu, "N_EPOCHS", 1)
    monkeypatch.setattr(gpu, "WAYS", (("cpu", True), ("cpu", False)))
    found = gpu.heads(tmp_path)
    assert found.what == "20 heads on 60 embeddings"
    assert set(found.figures) == {f"{head} cpu{way}" for head in gpu.HEADS for way in (" graph", "")}
    assert gpu.launches(tmp_path).figures == {}  # without a GPU nothing is started there
    monkeypatch.setattr(gpu.extraction, "SUSTAINED_S", 0.0)
    assert set(gpu.forward(tmp_path).figures) == {
        f"{precision} {way}" for precision in ("float32", "bfloat16") for way in ("graph", "kernels")
    }


def test_the_gpu_benchmark_says_why_nothing_was_captured() -> None:
    with gpu.refusals() as refused:
        assert gpu.said(refused) == "; captured as CUDA graphs"
        logging.getLogger("hoarfrost.training").debug("The steps are not a CUDA graph (%s)", "no CUDA")
        logging.getLogger("hoarfrost.training").debug("something else")
    assert gpu.said(refused) == "; NOT CAPTURED: The steps are not a CUDA graph (no CUDA)"
