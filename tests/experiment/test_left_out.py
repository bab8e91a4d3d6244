"""`train --leave-out`: heads that never saw a site, scored there, next to the same procedure with sites mixed."""

import csv
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from hoarfrost.cli.console.training import train_text
from hoarfrost.evaluation.discrimination import roc_auc
from hoarfrost.evaluation.meta_analysis import random_effects_of_areas
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.experiment.left_out import SitePlan, site_plan
from hoarfrost.experiment.task import Task, read_task
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.specs import parse_heads
from hoarfrost.report.page import page_of, render
from hoarfrost.report.paper import named_figures, tables_of
from hoarfrost.runs import Run, read_run
from hoarfrost.training import TrainingConfig
from tests.support.labelled import write_labelled_cache

QUICK = TrainingConfig(epochs=5, seeds=1)
SITES = ("A", "B", "C", "D")
PREVALENCE = (0.2, 0.8, 0.25, 0.75)
PER_SITE = 60


def cohort(
    *, shortcut: float, disease: float, seed: int = 0
) -> tuple[list[str], list[str], npt.NDArray[np.float32], list[str]]:
    """Return labels, sites, embeddings with a mark of the site and one of the disease, and patients of two images."""
    rng = np.random.default_rng(seed)
    labels, sites = [], []
    marks = rng.normal(size=(len(SITES), 512))
    for site, share in zip(SITES, PREVALENCE, strict=True):
        n_ill = round(share * PER_SITE)
        labels += ["malignant"] * n_ill + ["benign"] * (PER_SITE - n_ill)
        sites += [site] * PER_SITE
    ill = np.array([label == "malignant" for label in labels])
    numbers = np.array([SITES.index(site) for site in sites])
    x = rng.normal(size=(len(labels), 512)) + shortcut * marks[numbers] + np.outer(ill, disease * rng.normal(size=512))
    return labels, sites, x.astype(np.float32), [f"p{i // 2}" for i in range(len(labels))]


def write(path: Path, *, shortcut: float = 0.0, disease: float = 0.5, **others: list[str]) -> Path:
    labels, sites, x, patients = cohort(shortcut=shortcut, disease=disease)
    return write_labelled_cache(
        path, labels, embeddings=x, patients=others.pop("patients", patients),
        splits=others.pop("splits", None), attributes={"site": sites, **others},
    )  # fmt: skip


def trained(cache: Path, column: str = "site") -> Run:
    config = ExperimentConfig(training=QUICK, leave_out=column, overwrite=True)
    return run_experiment(cache, cache.parent / "run", parse_heads(["linear", "mlp:8"]), config)


def planned(path: Path, column: str = "site") -> tuple[Task, SitePlan]:
    with EmbeddingCache(path) as cache:
        task = read_task(cache, None, (), 0)
    return task, site_plan(task, column, 0)


def test_planted_site_shortcut_is_high_in_mixed_splits_and_low_at_new_sites(tmp_path: Path) -> None:
    run = trained(write(tmp_path / "c.h5", shortcut=1.0, disease=0.0))
    found = run.left_out
    assert found is not None
    assert found.mixed.value is not None
    assert found.held_out.value is not None
    assert found.within.value is not None
    assert found.mixed.value > 0.7
    assert found.held_out.value < 0.6
    assert found.within.value < 0.6  # sites rank images; within one there is nothing to learn
    assert found.drop.value == pytest.approx(found.mixed.value - found.held_out.value)
    assert found.drop.low is not None
    assert found.drop.low > 0.05
    page = page_of(run)
    first = (*page.grave, *page.cautions)[0]
    assert first.title == "Sites"
    assert f"{found.mixed.value:.3f}" in first.text
    assert f"{found.held_out.value:.3f}" in first.text
    html = render(run, with_images=False, with_map=False)
    assert html.index(first.text[:60]) < html.index('id="left-out"')


def test_a_disease_that_all_sites_show_does_not_drop(tmp_path: Path) -> None:
    run = trained(write(tmp_path / "c.h5", disease=0.5))
    found = run.left_out
    assert found is not None
    assert found.held_out.value is not None
    assert found.held_out.value > 0.9
    assert not found.is_grave
    assert not any(one.title == "Sites" for one in page_of(run).grave)


def test_areas_are_those_of_the_probabilities_of_heads_that_never_saw_the_site(tmp_path: Path) -> None:
    run = trained(write(tmp_path / "c.h5", disease=0.1))
    found = run.left_out
    assert found is not None
    with (run.directory / "left_out.csv").open() as file:
        rows = list(csv.DictReader(file))
    y = np.array([int(row["label"] == "malignant") for row in rows])
    held, mixed = (np.array([float(row[name]) for row in rows]) for name in ("site held out", "sites mixed"))
    numbers = np.array([int(row["fold"]) for row in rows])
    for number, one in enumerate(found.scored):
        own = numbers == number
        assert one.held_out.value == pytest.approx(roc_auc(y[own], held[own]))
        assert one.mixed.value == pytest.approx(roc_auc(y[own], mixed[own]))
    assert found.mixed.value == pytest.approx(roc_auc(y, mixed))
    assert found.held_out.value == pytest.approx(np.mean([one.held_out.value for one in found.scored]))
    assert found.summary == random_effects_of_areas([one.held_out for one in found.scored])
    # The interval of the drop, by drawing patients of each site.
    rng, drops = np.random.default_rng(0), []
    patients = np.array([row["patient"] for row in rows])
    members = {site: [np.flatnonzero(patients == p) for p in np.unique(patients[numbers == site])] for site in range(4)}
    for _ in range(400):
        drawn = [np.concatenate([own[i] for i in rng.integers(0, len(own), len(own))]) for own in members.values()]
        if min(np.ptp(y[own]) for own in drawn) == 0:  # a site without one of the classes
            continue
        every = np.concatenate(drawn)
        drops.append(roc_auc(y[every], mixed[every]) - np.mean([roc_auc(y[own], held[own]) for own in drawn]))
    assert found.drop.low is not None
    assert found.drop.high is not None
    half = (found.drop.high - found.drop.low) / 2
    assert half == pytest.approx(1.96 * np.std(drops) * np.sqrt(1 + 4 / 3), rel=0.25)  # training sets overlap


def test_no_head_learns_from_a_site_or_its_patients(tmp_path: Path) -> None:
    patients = cohort(shortcut=0, disease=0)[3]
    patients[70] = patients[0]  # of B and of A
    task, plan = planned(write(tmp_path / "c.h5", patients=patients))
    sites = np.array(cohort(shortcut=0, disease=0)[1])
    groups = np.array(patients)
    for name, one in plan.sites.items():
        assert set(sites[one.held_out]) == {name}
        assert set(one.held_out) == set(np.flatnonzero(sites == name))
        for fold in one.development.folds:
            assert not set(groups[fold.train]) & set(groups[one.held_out])
            assert not set(groups[fold.val]) & set(groups[one.held_out])
    assert len(plan.mixed) == 4
    assert 70 not in plan.sites["A"].development.rows
    assert 0 not in plan.sites["B"].development.rows
    assert 70 in plan.sites["C"].development.rows
    assert trained(tmp_path / "c.h5").left_out.n_shared == 1  # type: ignore[union-attr]
    assert task.patients is not None


def test_sites_that_cannot_be_scored_are_named_and_trained_on(tmp_path: Path) -> None:
    labels, sites, x, patients = cohort(shortcut=0, disease=0.5)
    sites = ["one class" if i < 54 and labels[i] == "benign" and i % 2 else site for i, site in enumerate(sites)]
    sites = ["few" if i >= 232 else "" if i in (100, 101) else site for i, site in enumerate(sites)]
    path = write_labelled_cache(
        tmp_path / "c.h5", labels, embeddings=x, patients=[f"q{i}" for i in range(240)], attributes={"site": sites}
    )
    assert patients
    run = trained(path)
    found = run.left_out
    assert found is not None
    reasons = {one.site: one.reason for one in found.sites}
    assert reasons["one class"] == "no patient of the class 'malignant'; 5 are needed"
    assert reasons["few"].startswith("0 patients") or reasons["few"].startswith("no patient")
    assert reasons["(missing)"] == "not a site"
    assert [one.site for one in found.scored] == ["A", "B", "C", "D"]
    _, plan = planned(path)
    assert all(232 in one.development.rows for one in plan.sites.values())
    assert "few, 8 images: not scored: no patient of the class 'malignant'; 5 are needed" in train_text(run)


def test_a_given_test_split_is_in_no_fold(tmp_path: Path) -> None:
    splits = ["test" if i % 60 % 10 < 2 else "train" for i in range(240)]
    _, plan = planned(write(tmp_path / "c.h5", splits=splits))
    used = {row for one in plan.splits for row in (*one.held_out, *one.development.rows)}
    assert used == {i for i in range(240) if splits[i] == "train"}


def test_unknown_columns_and_single_sites_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "c.h5", room=["one"] * 240, image=[f"i{i}" for i in range(240)])
    for column, message in {
        "hospital": "does not have this column. Its columns: image, room, site",
        "room": "0 of its values can be scored, two are needed. one: no other image to learn from.",
        "image": "240 different values",
    }.items():
        with pytest.raises(TrainingError, match=message):
            planned(path, column)


def test_run_is_read_back_and_reported(tmp_path: Path) -> None:
    run = trained(write(tmp_path / "c.h5", disease=0.05))
    again = read_run(run.directory)
    assert again.left_out == run.left_out
    assert again.left_out is not None
    assert json.loads((run.directory / "metrics.json").read_text())["left_out"]["column"] == "site"
    html = render(again, with_images=False, with_map=False)
    assert again.left_out.expectation.replace("'", "&#39;") in html
    assert "95% prediction interval from 4 sites" in again.left_out.expectation
    assert again.left_out.expectation in train_text(again)
    assert "sites held out" in named_figures(again)
    assert [row[0] for row in tables_of(again)["sites held out"].rows] == list(SITES)
