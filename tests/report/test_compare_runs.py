"""Runs side by side: the paired test where their images agree, the reason where they do not."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hoarfrost.evaluation import compare_heads
from hoarfrost.evaluation.comparison import NO_INTERVAL
from hoarfrost.features.cache import CacheWriter, EmbeddingCache
from hoarfrost.features.errors import RunError
from hoarfrost.report.compare import render_comparison, side_by_side
from hoarfrost.report.costs import Cost, cost_of
from hoarfrost.runs import Run, to_json, write_run
from tests.support.commands import Hoarfrost
from tests.support.labelled import mixed, write_labelled_cache
from tests.support.made_runs import BREAKOUT, HOSTILE, Page, make_run
from tests.support.pictured import trained

LABELS = mixed({"benign": 90, "malignant": 60})
PATIENTS = [f"p{i // 2}" for i in range(len(LABELS))]


def with_probabilities(run: Run, directory: Path, seed: int) -> Run:
    """Return another run on the same images, whose selected head says something else."""
    rng = np.random.default_rng(seed)
    old = run.predictions.probabilities
    drawn = {
        name: np.column_stack([1 - p, p])
        for name, p in ((n, np.clip(x[:, 1] + rng.normal(0, 0.2, len(x)), 0, 1)) for n, x in old.items())
    }
    return replace(run, directory=directory, predictions=replace(run.predictions, probabilities=drawn))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Run, Run]:
    first = make_run(tmp_path / "first")
    return first, with_probabilities(first, tmp_path / "second", seed=1)


def reason(first: Run, second: Run) -> str:
    (test,) = side_by_side([first, second]).tests
    assert test.result is None
    return test.reason


def test_runs_of_one_cache_are_compared_as_heads_of_one_run_are(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "c.h5", LABELS, patients=PATIENTS)
    heads = ["linear", "mlp:16"]
    both = trained(cache, tmp_path / "both", heads=heads, epochs=5, select="best")
    other = next(name for name in heads if name != both.selected)
    runs = [trained(cache, tmp_path / name[:3], heads=[name], epochs=5) for name in (both.selected, other)]
    (test,) = side_by_side(runs).tests
    expected = next(one for one in both.comparisons if one.name == other)
    assert test.result is not None
    assert test.result.difference.value == pytest.approx(expected.difference.value)
    assert test.result.p == pytest.approx(expected.p)


def test_several_images_of_a_patient_count_as_clusters(pair: tuple[Run, Run]) -> None:
    found = side_by_side(pair)
    rows = np.flatnonzero(np.array(pair[0].predictions.splits) == "test")
    _, groups = np.unique([pair[0].predictions.patients[i] for i in rows], return_inverse=True)
    p = {name: run.predictions.probabilities["mlp:256"][rows] for name, run in zip("AB", pair, strict=True)}
    (expected,) = compare_heads(pair[0].y_true()[rows], p, "A", groups=groups)
    assert found.tests[0].result == expected
    assert found.unit == "60 images of 15 patients, whose images count as clusters"


def test_images_in_another_order_are_compared_by_path(pair: tuple[Run, Run]) -> None:
    first, second = pair
    order = np.random.default_rng(0).permutation(len(second.predictions.paths))
    old = second.predictions
    columns = {name: tuple(getattr(old, name)[i] for i in order) for name in ("paths", "patients", "splits", "labels")}
    shuffled = replace(old, **columns, probabilities={name: p[order] for name, p in old.probabilities.items()})  # type: ignore[arg-type]
    assert side_by_side([first, replace(second, predictions=shuffled)]).tests == side_by_side(pair).tests


def test_p_values_are_corrected_for_the_number_of_runs(tmp_path: Path, pair: tuple[Run, Run]) -> None:
    third = with_probabilities(pair[0], tmp_path / "third", seed=2)
    tests = side_by_side([*pair, third]).tests
    assert [test.name for test in tests] == ["B", "C"]
    values = [(test.result.p, test.result.p_holm) for test in tests if test.result is not None]
    assert min(values)[1] == pytest.approx(min(1, 2 * (min(values)[0] or 0)))


def test_other_test_images_are_not_compared_and_counted(pair: tuple[Run, Run]) -> None:
    paths = tuple(path.replace("images/0017", "elsewhere/0017") for path in pair[1].predictions.paths)
    other = replace(pair[1], predictions=replace(pair[1].predictions, paths=paths))
    assert reason(pair[0], other) == "Their test images differ: 50 in both, 10 in A alone, 10 in B alone."


def test_other_labels_of_the_same_images_are_not_compared(pair: tuple[Run, Run]) -> None:
    labels = list(pair[1].predictions.labels)
    for i in (-1, -2, -3):
        labels[i] = "malignant" if labels[i] != "malignant" else "benign"
    other = replace(pair[1], predictions=replace(pair[1].predictions, labels=tuple(labels)))
    assert reason(pair[0], other) == "3 of their test images have another label in B than in A."


def test_validation_is_not_compared_with_test(tmp_path: Path, pair: tuple[Run, Run]) -> None:
    other = make_run(tmp_path / "other", n_of_split={"train": 90, "val": 60})
    assert reason(pair[0], other) == "A is scored on its test images, B on its validation images."


def test_other_tasks_are_not_compared(tmp_path: Path, pair: tuple[Run, Run]) -> None:
    other = make_run(tmp_path / "other", positive=None)
    assert reason(pair[0], other).startswith(
        "A predicts benign + normal, malignant; B predicts benign, malignant, normal."
    )


def test_patients_are_not_compared_with_images(pair: tuple[Run, Run]) -> None:
    other = replace(pair[1], config=replace(pair[1].config, per_patient="mean"))
    assert reason(pair[0], other) == (
        "A counts 60 test images of 15 patients, B 60 test images of 15 patients, by patient (mean)."
    )


def test_run_that_is_named_twice_is_refused(tmp_path: Path, pair: tuple[Run, Run]) -> None:
    again = replace(pair[0], directory=tmp_path / "x" / ".." / "first")
    with pytest.raises(RunError, match="is named twice. Name each run once"):
        side_by_side([pair[0], again])


def test_what_was_configured_differently_is_listed_and_nothing_else(pair: tuple[Run, Run]) -> None:
    embeddings = replace(pair[1].config.embeddings, preprocessing={"resize": 256, "crop": 200})
    config = replace(pair[1].config, seed=7, embeddings=embeddings, seconds=1.0, created="2026-01-01T00:00:00+00:00")
    found = dict(side_by_side([pair[0], replace(pair[1], config=config)]).differences)
    assert found == {
        "seed": ("0", "7"),
        "embeddings.preprocessing.crop": ("224", "200"),
        "embeddings.preprocessing.mean": ("0.485, 0.456, 0.406", "absent"),
    }


def test_page_shows_areas_and_test_of_each_run(tmp_path: Path, hoarfrost: Hoarfrost, pair: tuple[Run, Run]) -> None:
    for run in pair:
        write_run(run, {})
    arguments = [argument for run in pair for argument in ("--run", run.directory)]
    output = tmp_path / "new" / "both.html"
    status, stdout, _ = hoarfrost("report", *arguments, "--output", output, "--json")
    assert status == 0
    assert json.loads(stdout) == {"report": str(output)}
    page = Page(output.read_text(encoding="utf-8"))
    scores = to_json(pair[0].head("mlp:256").test)
    low, high = scores["roc_auc_ci95"]
    assert page.text.count(f"{scores['roc_auc']:.3f} ({low:.3f} to {high:.3f})") == 2
    result = side_by_side(pair).tests[0].result
    assert result is not None
    difference = result.difference
    assert f"B against A {difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})" in page.text
    tags = [tag for tag, _ in page.elements]
    assert tags.count("caption") == tags.count("table")
    assert not {"script", "img"} & page.tags()


def test_several_runs_need_an_output_and_touch_no_run(hoarfrost: Hoarfrost, pair: tuple[Run, Run]) -> None:
    for run in pair:
        write_run(run, {})
    arguments = [argument for run in pair for argument in ("--run", run.directory)]
    status, _, stderr = hoarfrost("report", *arguments)
    assert status == 2
    assert "Several runs need --output FILE.html" in stderr
    assert not [run for run in pair if (run.directory / "report.html").exists()]


def test_output_of_another_kind_is_refused(hoarfrost: Hoarfrost, pair: tuple[Run, Run]) -> None:
    write_run(pair[0], {})
    before = (pair[0].directory / "metrics.json").read_bytes()
    status, _, stderr = hoarfrost("report", "--run", pair[0].directory, "--output", pair[0].directory / "metrics.json")
    assert status == 2
    assert "Choose a name that ends in .html" in stderr
    assert (pair[0].directory / "metrics.json").read_bytes() == before


def test_report_of_one_run_goes_where_output_says(tmp_path: Path, hoarfrost: Hoarfrost, pair: tuple[Run, Run]) -> None:
    write_run(pair[0], {})
    status, *_ = hoarfrost("report", "--run", pair[0].directory, "--output", tmp_path / "mine.html")
    assert status == 0
    assert (tmp_path / "mine.html").is_file()
    assert not (pair[0].directory / "report.html").exists()


def written(pair: Sequence[Run]) -> list[Path]:
    for run in pair:
        write_run(run, {})
    return [run.directory for run in pair]


def test_compare_prints_a_table_and_a_sentence_and_writes_a_page_if_asked(
    tmp_path: Path, hoarfrost: Hoarfrost, pair: tuple[Run, Run]
) -> None:
    runs = written(pair)
    status, stdout, _ = hoarfrost("compare", *runs)
    assert status == 0
    test = side_by_side(pair).tests[0]
    assert test.verdict in stdout
    assert "2,048" in stdout  # 512 numbers of 4 bytes
    assert not [run for run in runs if (run / "report.html").exists()]
    status, stdout, _ = hoarfrost("compare", *runs, "--output", tmp_path / "both.html", "--json")
    assert status == 0
    document = json.loads(stdout)
    assert document["report"] == str(tmp_path / "both.html")
    assert [one["name"] for one in document["runs"]] == ["A", "B"]
    assert [one["bytes_per_image"] for one in document["runs"]] == [2048, 2048]
    assert [one["seconds_per_image"] for one in document["runs"]] == [None, None]
    (found,) = document["tests"]
    assert test.result is not None
    assert found["difference"] == test.result.difference.value
    assert found["p_holm"] == test.result.p_holm
    page = Page((tmp_path / "both.html").read_text(encoding="utf-8"))
    assert test.verdict in page.text
    assert "seconds per image" in page.text


def test_runs_that_share_no_test_images_are_refused_with_how_many_they_share(
    tmp_path: Path, hoarfrost: Hoarfrost, pair: tuple[Run, Run]
) -> None:
    paths = tuple(path.replace("images/0017", "elsewhere/0017") for path in pair[1].predictions.paths)
    other = replace(pair[1], predictions=replace(pair[1].predictions, paths=paths))
    first, second = written([pair[0], other])
    status, stdout, stderr = hoarfrost("compare", first, second, "--output", tmp_path / "both.html")
    assert (status, stdout) == (1, "")
    assert "Their test images differ: 50 in both, 10 in A alone, 10 in B alone." in stderr
    assert f"--splits-from {first}" in stderr
    assert not (tmp_path / "both.html").exists()


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        (0.4, "B is better than A on these"),
        (-0.4, "B is worse than A"),
        (0.0, "It is not shown that B is better or worse than A"),
    ],
)
def test_sentence_says_what_the_corrected_test_shows(pair: tuple[Run, Run], shift: float, words: str) -> None:
    first, second = pair
    y, rng = first.y_true(), np.random.default_rng(5)
    noise = rng.normal(0, 0.1, len(y))
    p = np.clip(0.5 + shift * (y - 0.5) + noise, 0, 1)
    own = 0.5 + 0.05 * (y - 0.5) + rng.normal(0, 0.1, len(y)) if shift else p
    runs = []
    for run, column in ((first, own), (second, p)):
        two = np.column_stack([1 - column, column])
        found = dict.fromkeys(run.predictions.probabilities, two)
        runs.append(replace(run, predictions=replace(run.predictions, probabilities=found)))
    assert side_by_side(runs).tests[0].verdict.startswith(words)


def test_sentence_of_a_difference_without_an_interval_says_why(pair: tuple[Run, Run]) -> None:
    y, runs = pair[0].y_true(), []
    for run in pair:
        two = np.column_stack([1.0 - y, 1.0 * y])
        found = dict.fromkeys(run.predictions.probabilities, two)
        runs.append(replace(run, predictions=replace(run.predictions, probabilities=found)))
    found = side_by_side(runs)
    assert found.tests[0].verdict.endswith(f": {NO_INTERVAL}.")
    assert "<td>+0.000</td>" in render_comparison(found)


def test_encoders_are_named_where_they_differ(pair: tuple[Run, Run]) -> None:
    other = replace(pair[1].config.embeddings, weights="random:0")
    found = side_by_side([pair[0], replace(pair[1], config=replace(pair[1].config, embeddings=other))])
    assert "B, ResNet18 (random:0), " in found.tests[0].verdict
    assert "A, ResNet18 (imagenet) " in found.tests[0].verdict


def test_compare_needs_two_runs_and_a_page_that_is_html(hoarfrost: Hoarfrost, pair: tuple[Run, Run]) -> None:
    runs = written(pair)
    assert hoarfrost("compare", runs[0])[0] == 2
    status, _, stderr = hoarfrost("compare", *runs, "--output", "x.pdf")
    assert status == 2
    assert "Choose a name that ends in .html" in stderr


def test_seconds_are_those_that_the_cache_recorded_of_its_extraction(tmp_path: Path) -> None:
    path = write_labelled_cache(tmp_path / "c.h5", LABELS, patients=PATIENTS)
    run = trained(path, tmp_path / "run", heads=["linear"], epochs=2)
    assert cost_of(run.config) == Cost(2048, None)
    with EmbeddingCache(path) as opened:
        table, keys = opened.dataset("phantoms"), opened.keys(opened.dataset("phantoms").rows)
        header = opened.header
    relabelled = replace(table, source="elsewhere", seconds_per_image=0.0125)
    with CacheWriter(path, header, "phantoms") as writer:
        writer.finish(relabelled, keys)
    assert cost_of(run.config) == Cost(2048, 0.0125)
    path.unlink()
    assert cost_of(run.config) == Cost(2048, None)


def test_hostile_names_appear_as_text_side_by_side(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"{HOSTILE}{i}", classes=(HOSTILE, BREAKOUT), positive=(BREAKOUT,), heads=(HOSTILE,))
        for i in range(2)
    ]
    runs[1] = replace(runs[1], config=replace(runs[1].config, machine=BREAKOUT, command=HOSTILE))
    page = Page(render_comparison(side_by_side(runs)))
    assert not {"img", "script"} & page.tags()
    assert BREAKOUT in page.text
    assert HOSTILE in page.text
