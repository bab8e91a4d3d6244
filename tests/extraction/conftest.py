"""Fixtures of the tests that decode in processes."""

from collections.abc import Iterator

import pytest

from hoarfrost.features.decoding.isolated import close_idle


@pytest.fixture(scope="module")
def no_process_stays() -> Iterator[None]:
    yield
    close_idle()


@pytest.fixture
def new_processes() -> Iterator[None]:
    """For a test that changes what they run."""
    close_idle()
    yield
    close_idle()
