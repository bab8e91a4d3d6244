"""A run on generated pictures, and a labelled cohort from elsewhere, of each file's own."""

from pathlib import Path

import pytest

from tests.support.cohorts import write_cohort
from tests.support.predicted import Trained, train_on_pictures


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_on_pictures(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("elsewhere") / "hospital_b")
