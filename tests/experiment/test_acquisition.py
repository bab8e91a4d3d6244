"""The acquisition-only twin: what files tell without looking at the image."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hoarfrost.cli.console.training import train_text
from hoarfrost.evaluation import Estimate
from hoarfrost.experiment.acquisition import acquisition_twin, facts_of
from hoarfrost.experiment.development import development_of
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.experiment.task import Task, read_task
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.facts import FileHeader, ImageFacts, Kinds
from hoarfrost.heads.specs import parse_heads
from hoarfrost.report.page import render
from hoarfrost.runs import Acquisition, from_json, hidden, read_run, to_json
from hoarfrost.runs.acquisition import CONTENT, GREY_LEVELS, MEANING, MEANING_OF_CONTENT
from hoarfrost.runs.lock import AnalysisPlan
from hoarfrost.training import TrainingConfig
from tests.support.labelled import mixed, write_labelled_cache

N = 240
N_CLEAN = 30
LABELS = mixed({"benign": 140, "malignant": 100})


def task_of(path: Path, seed: int = 0) -> Task:
    with EmbeddingCache(path) as cache:
        return read_task(cache, None, (), seed)


def twin_of(path: Path, seed: int = 0) -> Acquisition | None:
    task = task_of(path, seed)
    return acquisition_twin(task, development_of(task, seed))


def clean(path: Path, seed: int, facts: list[ImageFacts | None] | None = None, **others: list[str]) -> Path:
    """Write a cache whose files tell nothing of the labels, unless the facts do."""
    rng = np.random.default_rng(seed)
    return write_labelled_cache(
        path,
        LABELS,
        embeddings=np.zeros((N, 512), np.float32),
        patients=[f"p{i // 2}" for i in range(N)],
        sizes=np.exp(rng.normal(11, 1, N)).astype(int).tolist(),
        facts=facts,
        attributes={
            "scanner": rng.choice(["A", "B", "C"], N).tolist(),
            "age": [str(age) for age in rng.integers(20, 90, N)],
            **others,
        },
    )


def drawn_facts(rng: np.random.Generator, **planted: str) -> list[ImageFacts | None]:
    """Draw facts that tell nothing of the labels, but for those that `planted` names.

    A planted fact differs between the classes in 98% of the images; grey levels by two standard deviations.
    """
    told = [(label == "malignant") ^ (rng.random() < 0.02) for label in LABELS]
    found: list[ImageFacts | None] = []
    for label, is_other in zip(LABELS, told, strict=True):
        kinds = Kinds("DICOM, JPEG", "MONOCHROME2", "US", rng.choice(["A", "B", "C"]), rng.choice(["1", "2"]), "no")
        width, height, bits = (
            int(rng.choice([512, 600, 800])),
            int(rng.choice([400, 480, 600])),
            int(rng.choice([8, 12])),
        )
        moments = rng.normal([90, 40, 0.5, 3.0], [20, 8, 0.3, 0.5])
        if is_other and "manufacturer" in planted:
            kinds = kinds._replace(manufacturer="D")
        width = width + 64 if is_other and "pixel width" in planted else width
        bits = (16 if is_other else 12) if "bits per channel" in planted else bits
        if "grey mean" in planted and label == "malignant":
            moments[0] += 40
        found.append(ImageFacts(FileHeader(width, height, bits, kinds), 1, tuple(moments.tolist())))
    return found


@pytest.mark.parametrize("fact", ["manufacturer", "pixel width", "bits per channel"])
def test_planted_kind_of_header_is_found_by_headers_alone(tmp_path: Path, fact: str) -> None:
    twin = twin_of(clean(tmp_path / "c.h5", 0, facts=drawn_facts(np.random.default_rng(0), **{fact: "planted"})))
    assert twin is not None
    assert twin.headers is not None
    assert not CONTENT & {*twin.headers.facts}
    assert {"bytes", *GREY_LEVELS} < {*twin.facts}
    assert twin.headers.scored.value is not None
    assert twin.headers.scored.value > 0.9
    assert twin.suspect() is twin.headers
    assert twin.by_fact[fact] == max(twin.by_fact.values()) > 0.8
    assert twin.warning().startswith("A classifier that sees no pixel, only ")
    assert f"alone: {fact} {twin.by_fact[fact]:.2f}" in twin.warning()
    assert twin.warning().endswith(MEANING)


def test_planted_grey_offset_is_found_and_said_to_depend_on_the_images(tmp_path: Path) -> None:
    path = clean(tmp_path / "c.h5", 0, facts=drawn_facts(np.random.default_rng(0), **{"grey mean": "planted"}))
    twin = twin_of(path)
    assert twin is not None
    assert twin.headers is not None
    assert twin.headers.scored.interval is not None
    assert twin.headers.scored.interval[0] < 0.5 < twin.headers.scored.interval[1]
    assert twin.suspect() is twin
    assert twin.scored.value is not None
    assert twin.scored.value > 0.85
    assert twin.warning().startswith("A classifier that does not look at the image, only at ")
    assert f"alone: grey mean {twin.by_fact['grey mean']:.2f}" in twin.warning()
    assert twin.warning().endswith(MEANING_OF_CONTENT)


def test_unknown_facts_of_many_images_are_left_out(tmp_path: Path) -> None:
    """Those of images that were extracted by an earlier version are unknown: that is no sign of the disease."""
    facts = drawn_facts(np.random.default_rng(0))
    some = [None if label == "malignant" else one for label, one in zip(LABELS, facts, strict=True)]
    twin = twin_of(clean(tmp_path / "some.h5", 0, facts=some))
    assert twin is not None
    assert twin.facts == ("bytes", "age", "scanner")
    assert not twin.is_high
    few = [None, *facts[1:]]
    assert "manufacturer" in (twin_of(clean(tmp_path / "few.h5", 0, facts=few)) or twin).facts


def test_column_of_the_dataset_keeps_its_name(tmp_path: Path) -> None:
    path = clean(tmp_path / "c.h5", 0, facts=drawn_facts(np.random.default_rng(0)), manufacturer=["a", "b"] * (N // 2))
    found = facts_of(task_of(path))
    assert found["manufacturer"] == ["a", "b"] * (N // 2)
    assert {*found["manufacturer of the file"]} == {"A", "B", "C"}


def test_column_that_is_named_like_a_fact_of_the_content_is_no_content(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    names = {"bytes": rng.choice(["a", "b"], N).tolist(), "grey mean": rng.choice(["a", "b"], N).tolist()}
    twin = twin_of(clean(tmp_path / "c.h5", 0, drawn_facts(np.random.default_rng(0)), **names))
    assert twin is not None
    assert twin.headers is not None
    assert {"bytes", "grey mean"} < {*twin.headers.facts}
    assert {*twin.facts} - {*twin.headers.facts} == {"bytes of the file", "grey mean of the file", *GREY_LEVELS[1:]}
    assert replace(twin, facts=("bytes of the file",), headers=None).of_headers is None


def test_planted_format_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [
        f"{i}.{'png' if (label == 'malignant') ^ (rng.random() < 0.1) else 'jpg'}" for i, label in enumerate(LABELS)
    ]
    sizes = np.exp(rng.normal(11, 1, N)).astype(int).tolist()
    path = write_labelled_cache(
        tmp_path / "c.h5", LABELS, paths=paths, sizes=sizes, embeddings=np.zeros((N, 512), np.float32)
    )
    twin = twin_of(path)
    assert twin is not None
    assert twin.facts == ("format", "bytes")
    assert twin.test is not None
    assert twin.scored.value == pytest.approx(0.9, abs=0.08)
    assert twin.is_high
    assert twin.by_fact["format"] > 0.8 > 0.7 > twin.by_fact["bytes"]
    assert "a ROC AUC of 0.9" in twin.warning()
    assert f"alone: format {twin.by_fact['format']:.2f}" in twin.warning()


def test_file_sizes_in_the_middle_are_found_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    middle = np.array([label == "malignant" for label in LABELS])
    sizes = np.where(middle, rng.integers(40_000, 60_000, N), rng.choice([10_000, 200_000], N) + rng.integers(0, 99, N))
    twin = twin_of(write_labelled_cache(tmp_path / "c.h5", LABELS, sizes=sizes.tolist()))
    assert twin is not None
    assert twin.scored.value is not None
    assert twin.scored.value > 0.9


def test_on_clean_sets_the_interval_has_one_half(tmp_path: Path) -> None:
    """Of 100 seeds 96 or 97 did, each of the four intervals; fewer here, for the time."""
    hits = {"headers, val": 0, "headers, test": 0, "all, val": 0, "all, test": 0}
    for seed in range(N_CLEAN):
        facts = drawn_facts(np.random.default_rng(10_000 + seed))
        twin = twin_of(clean(tmp_path / f"{seed}.h5", seed, facts), seed)
        assert twin is not None
        assert twin.headers is not None
        for which, found in {"headers": twin.headers, "all": twin}.items():
            assert found.test is not None
            for name, one in {"val": found.val, "test": found.test}.items():
                assert one.interval is not None
                hits[f"{which}, {name}"] += one.interval[0] <= 0.5 <= one.interval[1]
    assert min(hits.values()) >= 0.9 * N_CLEAN, hits


def test_labels_of_the_test_split_do_not_change_its_predictions(tmp_path: Path) -> None:
    """The classifier learns from the development set alone: facts that only the test split has are no columns."""
    splits = ["test" if i >= 180 else "train" for i in range(N)]
    marks = [label if split == "test" else "x" for label, split in zip(LABELS, splits, strict=True)]
    path = write_labelled_cache(tmp_path / "c.h5", LABELS, splits=splits, attributes={"leak": marks})
    assert twin_of(path) is None


def test_files_that_are_all_alike_have_no_twin(tmp_path: Path) -> None:
    path = write_labelled_cache(tmp_path / "c.h5", LABELS)
    assert twin_of(path) is None
    assert facts_of(task_of(path))["format"] == [".png"] * N


def test_run_records_it_and_the_report_warns(tmp_path: Path) -> None:
    cache = clean(tmp_path / "c.h5", 0, room=[f"room {label}" for label in LABELS])
    config = ExperimentConfig(training=TrainingConfig(epochs=3, seeds=1))
    run = run_experiment(cache, tmp_path / "run", parse_heads(["linear"]), config)
    found = read_run(run.directory).acquisition
    assert found is not None
    assert found == run.acquisition
    assert found.warning() in run.config.warnings
    written = json.loads((run.directory / "metrics.json").read_text())["acquisition"]
    assert written["facts"] == ["bytes", "age", "room", "scanner"]
    assert written["test"]["value"] == found.scored.value == 1.0
    page = render(run, with_images=False, with_map=False)
    assert "What files tell without looking at the image" in page
    assert found.warning() in page


def test_both_classifiers_are_recorded_printed_and_reported(tmp_path: Path) -> None:
    facts = drawn_facts(np.random.default_rng(0), **{"pixel width": "planted"})
    cache = clean(tmp_path / "c.h5", 0, facts)
    config = ExperimentConfig(training=TrainingConfig(epochs=3, seeds=1))
    run = run_experiment(cache, tmp_path / "run", parse_heads(["linear"]), config)
    found = read_run(run.directory).acquisition
    assert found is not None
    assert found == run.acquisition
    assert found.headers is not None
    written = json.loads((run.directory / "metrics.json").read_text())["acquisition"]
    assert written["headers"]["test"]["value"] == found.headers.scored.value
    printed = train_text(run)
    known = "manufacturer, model, bits per channel, pixel width, pixel height, aspect ratio, age, scanner"
    assert (
        f"What files tell without looking at the image ({known}): test AUC {found.headers.scored.value:.3f}" in printed
    )
    assert f"  with bytes, {', '.join(GREY_LEVELS)}: test AUC {found.scored.value:.3f}" in printed
    page = render(run, with_images=False, with_map=False)
    assert f"that sees no pixel, only {known}, was fitted" in page
    assert "that does not look at the image, but knows bytes, " in page
    assert found.warning() in page
    plan = AnalysisPlan("", 46, "", "", "", "", (), {})  # only whether there is one counts
    locked = hidden(replace(run, config=replace(run.config, plan=plan))).acquisition
    assert locked is not None
    assert locked.headers is not None
    assert locked.test is locked.headers.test is None
    assert not locked.by_fact


def test_runs_of_earlier_versions_have_one_classifier_and_the_same_warning() -> None:
    area = Estimate(0.9, 0.8, 0.95, "", 100)
    old = from_json({"facts": ["format", "bytes"], "setting": "", "val": to_json(area), "test": None}, Acquisition)
    assert old.headers is None
    assert old.suspect() is old.of_headers is old
    assert old.warning().endswith(MEANING)
    of_content = replace(old, facts=("bytes",))
    assert of_content.of_headers is None
    assert of_content.warning().endswith(MEANING_OF_CONTENT)
    assert replace(old, val=replace(area, low=0.6)).warning() == ""


def test_grey_levels_are_worth_a_caution_only_where_the_head_is_hardly_better() -> None:
    area = Estimate(0.9, 0.8, 0.95, "", 100)
    found = Acquisition(("bytes", "grey mean"), "", area, None, {"grey mean": 0.88})
    assert found.warning(0.99) == found.meaning(0.99) == ""
    assert "alone: grey mean 0.88" in found.warning(0.93)
    assert found.warning(0.93).endswith(MEANING_OF_CONTENT)
    of_headers = replace(found, headers=replace(found, facts=("format",)))
    assert of_headers.suspect(0.99) is of_headers.headers  # whatever the head reaches
