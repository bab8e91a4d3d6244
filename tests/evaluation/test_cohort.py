"""Table 1 and the flow of images: counted as a reader would count them."""

import numpy as np
import pytest

from hoarfrost.evaluation.cohort import COUNT, MEAN, MEDIAN, characteristics, cohort_groups, flow_of
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.heads.specs import parse_heads
from hoarfrost.report.cohort import cohort_rows, flow_steps
from hoarfrost.report.page import render
from hoarfrost.report.paper import tables_of
from hoarfrost.runs import Run, read_run
from hoarfrost.training import TrainingConfig
from tests.support.labelled import mixed, write_labelled_cache
from tests.support.made_runs import Page


def test_texts_are_counted_and_numbers_summarised_by_their_shape() -> None:
    members = np.repeat([True, False], 20), np.repeat([False, True], 20)
    even, skewed = np.arange(40.0), np.exp(np.arange(40) / 5)
    sexes = ["f", "m"] * 19 + ["", "n/a"]
    columns = {"sex": sexes, "age": [f"{x:g}" for x in even], "size": [f"{x!r}" for x in skewed.tolist()]}
    f, m, missing, age, size = characteristics(columns, members)
    assert [(one.value, one.kind) for one in (f, m, missing)] == [("f", COUNT), ("m", COUNT), ("(missing)", COUNT)]
    assert (f.figures, missing.figures) == (((10, 20), (9, 18)), ((0, 20), (2, 20)))
    assert (age.kind, size.kind) == (MEAN, MEDIAN)
    assert age.figures[1] == pytest.approx((even[20:].mean(), even[20:].std(ddof=1)))
    assert size.figures[0] == pytest.approx(tuple(np.quantile(skewed[:20], [0.5, 0.25, 0.75])))


def test_identifiers_are_one_row_and_groups_without_values_have_no_figures() -> None:
    members = np.repeat([True, False], 20), np.repeat([False, True], 20)
    (names, missing) = characteristics({"name": [f"n{i}" if i < 25 else "" for i in range(40)]}, members)
    assert (names.value, names.figures) == ("(25 different values)", ((20, 20), (5, 5)))
    assert missing.figures == ((0, 20), (15, 20))
    (age, _) = characteristics({"age": [str(i) if i < 20 else "" for i in range(40)]}, members)
    assert age.figures[1] == ()


def test_columns_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="3 values of 'age'"):
        characteristics({"age": ["1", "2", "3"]}, [np.ones(4, bool)])


def test_steps_and_groups_add_up() -> None:
    splits = ["train", "train", "test", "", "train"]
    flow = flow_of(7, [0, 0, 1, 2, 3], splits, ("train", "test"), np.array([0, 0, 1, 2, 0]))
    assert (flow.n_listed, flow.n_unreadable, flow.n_readable, flow.n_used) == (7, 2, 5, 4)
    assert (flow.n_same_bytes, flow.n_without_split, flow.n_near_groups, flow.n_near_images) == (1, 1, 1, 3)
    ill = np.array([True, False, True, True, False])
    groups, members = cohort_groups(splits, {"ill": ill}, ("train", "test"), np.array([0, 0, 1, 2, 3]))
    assert [(one.split, one.label, one.n_images, one.n_patients) for one in groups] == [
        ("train", "all", 3, 2), ("train", "ill", 1, 1), ("test", "all", 1, 1), ("test", "ill", 1, 1),
        ("all", "all", 4, 3), ("all", "ill", 2, 2),
    ]  # fmt: skip
    assert members[4].sum() == 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("cohort")
    labels = mixed({"benign": 60, "malignant": 40})
    patients = [f"p{i // 2}" for i in range(len(labels))]
    sites = ["north" if i % 3 else "south" for i in range(len(labels))]
    cache = write_labelled_cache(folder / "cache.h5", labels, patients=patients, attributes={"site": sites})
    config = ExperimentConfig(training=TrainingConfig(epochs=2))
    return run_experiment(cache, folder / "run", parse_heads(["linear"]), config)


def test_run_keeps_its_cohort_and_the_report_shows_it(trained: Run) -> None:
    cohort = trained.config.dataset.cohort
    assert cohort is not None
    assert read_run(trained.directory).config.dataset.cohort == cohort
    everyone = next(i for i, one in enumerate(cohort.groups) if (one.split, one.label) == ("all", "all"))
    assert (cohort.groups[everyone].n_images, cohort.groups[everyone].n_patients) == (100, 50)
    rows = {row.name: row.cells for row in cohort_rows(cohort)}
    assert (rows["images"][everyone], rows["site: south"][everyone]) == ("100", "34 (34%)")
    page = Page(render(trained, with_images=False, with_map=False)).text
    for text in (*(step.text for step in flow_steps(cohort)), "site: south", "34 (34%)", "100 images listed"):
        assert text in page


def test_paper_has_the_same_counts(trained: Run) -> None:
    tables = tables_of(trained)
    assert ("listed", 100) in tables["flow"].rows
    assert ("all", "all", "site", "south", COUNT, 34.0, 100.0, None) in tables["characteristics"].rows
    sizes = {size.split: size.n_images for size in trained.split_sizes()}
    assert dict(tables["flow"].rows[-len(sizes) :]) == sizes  # type: ignore[arg-type]
