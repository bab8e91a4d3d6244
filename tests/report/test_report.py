"""The report: what it says, what it must never say, and that it is one file that needs nothing else."""

import base64
import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hoarfrost.features.errors import RunError
from hoarfrost.report.figures import nice_ticks
from hoarfrost.report.outputs import write_report
from hoarfrost.report.svg import simplify
from hoarfrost.report.words import duration
from hoarfrost.runs import (
    Run,
    UnreadableImage,
    read_run,
    to_json,
    write_run,
)
from tests.support.made_runs import (
    BREAKOUT,
    HOSTILE,
    N_OF_SPLIT,
    Page,
    make_run,
    with_dataset,
    with_weights,
)


def report_html(run: Run) -> str:
    write_run(run, {})
    return write_report(run.directory).read_text(encoding="utf-8")


def report_page(run: Run) -> Page:
    return Page(report_html(run))


def test_report_is_one_file_that_requests_nothing(tmp_path: Path) -> None:
    html = report_html(make_run(tmp_path / "run"))
    page = Page(html)
    targets = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "xlink:href", "data", "action", "poster")
    ]
    assert all(target.startswith(("data:", "#")) for target in targets), targets
    assert not {"iframe", "object", "embed", "base"} & page.tags()
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "numbers"}, {}]
    assert not [word for word in ("@import", "url(", "http:", "https:") if word in html]
    policy = next(attributes for _, attributes in page.elements if "http-equiv" in attributes)
    assert "default-src 'none'" in policy["content"]
    script = html[html.rindex("<script>") + len("<script>") : html.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy["content"]


def test_nothing_but_the_report_is_added_to_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_run(run, {})
    before = {path.name for path in run.directory.iterdir()}
    assert write_report(run.directory) == run.directory / "report.html"
    assert {path.name for path in run.directory.iterdir()} == before | {"report.html"}


def test_report_that_cannot_be_written_is_a_clear_error_and_keeps_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    write_run(run, {})
    earlier = write_report(run.directory).read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RunError, match=r"report\.html: the report cannot be written: .*No space left"):
        write_report(run.directory)
    assert (run.directory / "report.html").read_bytes() == earlier
    assert not list(run.directory.glob(".*"))


def test_first_screen_names_the_task_and_the_answer(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = report_page(run)
    scores = to_json(run.head(run.selected).test)
    first_screen = page.text.split("Explore mlp:256 on 60 test images")[0]
    for words in (
        "malignant against benign + normal",
        "180 images of 41 patients: 90 train (23 patients), 30 validation (8 patients), 60 test (15 patients).",
        "Selected head, of 3 mlp:256",
        f"Test ROC AUC {scores['roc_auc']:.3f}",
        f"95% interval {scores['roc_auc_ci95'][0]:.3f} to {scores['roc_auc_ci95'][1]:.3f} on 60 test images",
        f"Test accuracy {scores['accuracy']:.3f}",
        "always the most frequent class: 0.533",
    ):
        assert words in first_screen


def ends_of(scores: dict[str, Any]) -> str:
    ends = scores.get("roc_auc_ci95")
    return "selected on these; optimistic" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


@pytest.mark.parametrize("n_of_split", [N_OF_SPLIT, {"train": 90, "val": 30}], ids=["test", "no test"])
def test_every_auc_in_the_table_is_in_metrics(tmp_path: Path, n_of_split: dict[str, int]) -> None:
    run = make_run(tmp_path / "run", n_of_split=n_of_split)
    cells = [" ".join(cell.split()) for cell in re.findall(r'<td class="auc">(.*?)</td>', report_html(run))]
    run = read_run(run.directory)
    ranked = [run.head("mlp:256"), *sorted((run.heads[0], run.heads[2]), key=lambda head: -head.val.value("roc_auc"))]
    expected = [
        f"{scores['roc_auc']:.3f} ({ends_of(scores)})"
        for head in (*ranked, *run.references)
        for scores in (to_json(head.val), to_json(head.test))
        if scores is not None
    ]
    assert cells == expected


def test_hostile_names_appear_as_text(tmp_path: Path) -> None:
    classes = (HOSTILE, BREAKOUT, "Gänge & Höhlen mit Leerzeichen")
    run = make_run(tmp_path / "run", classes=classes, positive=None, heads=(HOSTILE, BREAKOUT))
    run = with_dataset(run, name=HOSTILE, source=BREAKOUT, unreadable=(UnreadableImage(BREAKOUT, HOSTILE),))
    run = replace(run, config=replace(run.config, warnings=(HOSTILE,), command=BREAKOUT, machine=HOSTILE))
    html = report_html(run)
    page = Page(html)
    assert "img" not in page.tags()
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert html.count("</script>") == 2
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert html.count("</style>") == 1
    for name in classes:
        assert " ".join(name.split()) in page.text


def test_hostile_names_appear_as_text_in_a_binary_run(tmp_path: Path) -> None:
    page = report_page(make_run(tmp_path / "run", classes=(HOSTILE, BREAKOUT), positive=(BREAKOUT,), heads=(HOSTILE,)))
    assert "img" not in page.tags()
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert f"{BREAKOUT} against {HOSTILE}" in page.text


def test_report_without_test_split_never_says_test_auc(tmp_path: Path) -> None:
    page = report_page(make_run(tmp_path / "run", n_of_split={"train": 90, "val": 30}))
    warning, rest = page.text.split("Expect lower scores on new images.")
    assert (
        "The dataset does not have a test split. All scores are validation scores, which also chose the head" in warning
    )
    assert not re.search(r"\btest\b", rest, re.IGNORECASE)
    labels = [attributes["aria-label"] for _, attributes in page.elements if "aria-label" in attributes]
    assert not any("test" in label for label in labels)
    assert "30 validation images" in rest


def test_random_weights_are_announced_on_top(tmp_path: Path) -> None:
    page = report_page(with_weights(make_run(tmp_path / "run"), "random:0"))
    banner = "These embeddings come from an untrained backbone (random:0). The scores are a lower limit, not a result."
    assert banner in page.text
    assert page.text.index(banner) < page.text.index("Selected head")
    assert [tag for tag, _ in page.elements].index("aside") < [tag for tag, _ in page.elements].index("h1")


def test_warnings_of_the_run_are_on_the_first_screen(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = report_page(replace(run, config=replace(run.config, warnings=("Two patients are in two splits.",))))
    first_screen = page.text[: page.text.index("Explore Compare Trust")]
    assert "Before you believe it Note Two patients are in two splits." in first_screen


def test_report_with_nothing_to_warn_of_has_no_warnings(tmp_path: Path) -> None:
    assert "aside" not in report_page(make_run(tmp_path / "run")).tags()


def test_binary_roc_figure_has_a_curve_for_each_head(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    html = report_html(run)
    figure = html[html.index('<h3 id="roc">') : html.index('<h3 id="precision">')]
    assert figure.count('<path class="curve') == 3
    assert figure.count(" strong") == 2  # the selected head's curve, and its line in the legend
    areas = {head.name: (head.test or head.val).value("roc_auc") for head in run.heads}
    best = max(areas, key=areas.__getitem__)
    assert (
        f"ROC curves of 3 heads on 60 test images of 15 patients; {best} has the largest area, {areas[best]:.2f}"
        in figure
    )


def test_three_classes_have_a_curve_for_each_class_of_the_selected_head(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", positive=None)
    html = report_html(run)
    figure = html[html.index('<h3 id="roc">') : html.index('<h3 id="precision">')]
    assert figure.count('<path class="curve') == 3
    for label, area in to_json(run.head("mlp:256").test)["roc_auc_per_class"].items():
        assert f"{label}: AUC {area:.3f}" in figure
    assert "macro one-vs-rest" in html


def test_confusion_matrix_counts_the_selected_heads_most_probable_classes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", positive=None)
    html = report_html(run)
    is_test = np.array(run.predictions.splits) == "test"
    y_true, y_pred = run.y_true()[is_test], run.predictions.probabilities["mlp:256"][is_test].argmax(axis=1)
    expected = [int(((y_true == i) & (y_pred == j)).sum()) for i in range(3) for j in range(3)]
    cells = re.findall(r"<b>(\d+)</b>(\d+)%", html)
    assert [int(count) for count, _ in cells] == expected
    assert [int(percent) for _, percent in cells] == [round(100 * count / 20) for count in expected]


def test_counts_are_given_by_split_and_class(tmp_path: Path) -> None:
    page = report_page(make_run(tmp_path / "run", n_of_split={"train": 91, "val": 30, "test": 60}))
    assert "label train validation test all benign 31 (23) 10 (8) 20 (16) 61 (46) malignant 30 (23) 10 (8)" in page.text
    assert "all images 91 30 60 181 patients 23 9 16 41" in page.text


def test_first_fifty_unreadable_images_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    unreadable = tuple(UnreadableImage(f"bad/{number}.png", f"truncated after {number} bytes") for number in range(60))
    page = report_page(with_dataset(make_run(tmp_path / "run"), unreadable=unreadable))
    assert "Unreadable images: 60." in page.text
    assert "bad/49.png truncated after 49 bytes" in page.text
    assert "bad/50.png" not in page.text
    assert "10 more are in config.json." in page.text


def test_provenance_says_where_all_came_from(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = report_page(run)
    provenance = page.text[page.text.index("What is needed to repeat this run") :]
    for words in (run.config.command, run.config.embeddings.fingerprint, run.config.embeddings.weights_sha256):
        assert words in provenance
    for words in (
        "seed 0",
        "crop 224",
        f"created {run.config.created}, in 2 min 14 s",
        "split drawn here, by patient",
        "torch 2.9.0",
        "weights imagenet",
    ):
        assert words in provenance


def test_report_is_the_same_bytes_twice(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_run(run, {})
    assert write_report(run.directory).read_bytes() == write_report(run.directory).read_bytes()


def test_missing_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere is not a run folder .*hoarfrost train --cache FILE --run"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize("history", ["none", "one epoch", "diverged"])
def test_report_copes_with_odd_training_curves(tmp_path: Path, history: str) -> None:
    run = make_run(tmp_path / "run", heads=["linear"])
    diverged = tuple(replace(epoch, train_loss=float("nan"), val_loss=float("inf")) for epoch in run.history)
    odd = {"none": (), "one epoch": run.history[:1], "diverged": diverged}[history]
    html = report_html(replace(run, history=odd))
    assert ("training loss" in html) == (history != "none")
    assert "nan" not in re.findall(r' d="[^"]*"', html)


def test_every_figure_and_table_can_be_heard(tmp_path: Path) -> None:
    html = report_html(make_run(tmp_path / "run"))
    page = Page(html)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("h1") == 1
    assert {"header", "main", "footer"} <= set(tags)
    assert tags.count("caption") == tags.count("table")
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")
    drawings = [attributes for _, attributes in page.elements if attributes.get("class") == "drawing"]
    assert len(drawings) == 5  # ROC, precision, and three heads' training
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawings)
    assert "Research use only. Not a medical device." in page.text


def test_importing_the_report_loads_neither_torch_nor_matplotlib() -> None:
    code = "import sys, hoarfrost.report.outputs; print(*({'torch', 'matplotlib'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def distance_to_curve(point: npt.NDArray[np.float64], curve: npt.NDArray[np.float64]) -> float:
    """Measure the distance to the nearest of many places on a curve: slow, plain, and close enough."""
    shares = np.linspace(0, 1, 201)[:, None]
    places = [start + shares * (end - start) for start, end in pairwise(curve)]
    return float(np.linalg.norm(np.concatenate(places) - point, axis=1).min())


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=2, max_size=30))
def test_simplified_curve_stays_within_its_tolerance(steps: list[tuple[int, int]]) -> None:
    points = np.cumsum(np.array(steps, dtype=np.float64), axis=0)
    simple = simplify(points, tolerance=1.0)
    assert (simple[[0, -1]] == points[[0, -1]]).all()
    assert all((point == points).all(axis=1).any() for point in simple)
    assert all(distance_to_curve(point, simple) <= 1.0 + 0.2 for point in points)


def test_simplified_curve_of_ten_thousand_points_has_some_hundred() -> None:
    rng = np.random.default_rng(0)
    staircase = np.cumsum(np.eye(2)[rng.integers(0, 2, 10_000)], axis=0) * 300 / 5_000
    assert len(simplify(staircase, tolerance=0.2)) < 1_000


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_lie_on_their_axis_in_equal_steps(low: float, length: float) -> None:
    ticks = nice_ticks(low, low + length)
    assert 2 <= len(ticks) <= 7
    slack = 1e-6 * max(abs(low), length, 1)
    assert low - slack <= ticks[0] < ticks[-1] <= low + length + slack
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0], atol=1e-6)


@pytest.mark.parametrize(("seconds", "text"), [(3.44, "3.4 s"), (134.2, "2 min 14 s"), (3899.6, "1 h 05 min")], ids=str)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
