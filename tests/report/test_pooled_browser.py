"""The page of pooled sites in a browser: it asks for nothing, complains of nothing, fits its window, and is accessible."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from hoarfrost.external.predictions import PredictionsConfig, evaluate_predictions
from hoarfrost.report.outputs import report_pooled
from hoarfrost.runs.aggregate import read_aggregate
from tests.support.browser import Browser, Tab, open_tab
from tests.support.builders import write_csv
from tests.support.reported import HOSTILE

SITES = (
    "north",
    HOSTILE,
    "a hospital with a name that is as long as those of some hospitals are, and has one_unbreakable_word",
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page of three sites, of which one has a hostile name."""
    folder, files = tmp_path_factory.mktemp("pooled"), []
    for seed, site in enumerate(SITES):
        rng = np.random.default_rng(seed)
        y = rng.binomial(1, 0.3, 300)
        p = expit(rng.normal(1.5 * (y - 0.5), 1))
        rows = [[str(i), str(y[i]), repr(float(p[i]))] for i in range(len(y))]
        table = write_csv(folder / f"{seed}.csv", [["id", "label", "probability"], *rows])
        files.append(folder / f"{seed}.json")
        config = PredictionsConfig(name=site, aggregate=files[-1], operating_point="threshold=0.5")
        evaluate_predictions([table], None, config=config)
    report_pooled(files, folder / "pooled.html")
    return folder / "pooled.html"


@pytest.fixture
def tab(browser: Browser, page: Path) -> Iterator[Tab]:
    opened = open_tab(browser, page)
    yield opened
    opened.close()


def test_page_asks_for_nothing_and_complains_of_nothing(tab: Tab, page: Path) -> None:
    assert [one for one in tab.requests if not one.startswith("data:")] == [page.as_uri()]
    assert tab.complaints == []
    assert tab.run("document.images.length") == 0
    assert HOSTILE in tab.run("document.body.textContent")


@pytest.mark.parametrize("width", [360, 1280, 1920])
def test_page_never_scrolls_sideways(browser: Browser, page: Path, width: int) -> None:
    opened = open_tab(browser, page, width=width)
    assert opened.run("document.documentElement.scrollWidth") <= width
    opened.close()


def test_table_and_curves_show_what_the_sites_shared(tab: Tab, page: Path) -> None:
    cells = tab.run(
        "Array.from(document.querySelector('table').querySelectorAll('tbody tr'), row => "
        "Array.from(row.querySelectorAll('th, td'), cell => cell.textContent.trim()))"
    )
    shared = [read_aggregate(page.with_name(f"{seed}.json")) for seed in range(len(SITES))]
    for (site, n, n_positive, area, _, sensitivity, *_), one in zip(cells, shared, strict=True):
        (found,) = one.classes
        assert (site, n, n_positive) == (one.site, f"{found.n}", f"{found.n_positive}")
        assert area.startswith(f"{found.roc_auc.value:.3f} (")
        assert found.sensitivity is not None
        assert sensitivity.startswith(f"{found.sensitivity.value:.3f} (")
    assert tab.run("document.querySelectorAll('svg.drawing').length") == 1
    assert tab.run("document.querySelectorAll('svg.drawing polyline, svg.drawing path').length") >= len(SITES)


def test_page_is_accessible(tab: Tab, axe: str) -> None:
    tab.run(f"{axe}; 0")
    found = tab.run("axe.run().then(found => found.violations.map(one => [one.id, one.nodes[0].html]))")
    assert found == []
