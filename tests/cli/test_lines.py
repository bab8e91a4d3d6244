"""Parts of several summaries."""

import pytest

from hoarfrost.cli.console.lines import untrained_lines


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ("imagenet", []),
        ("random:0", ["random:0"]),
        ("random:0 and random:0", ["random:0"]),
        ("imagenet and random:1", ["random:1"]),
    ],
)
def test_each_untrained_encoder_is_a_caution_once(weights: str, named: list[str]) -> None:
    assert [line.partition(" is an untrained")[0] for line in untrained_lines(weights)] == named
