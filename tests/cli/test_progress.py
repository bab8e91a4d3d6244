"""How far an extraction is: one line on a terminal, lines now and then in a file."""

import io
import logging
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from hoarfrost.cli import main
from hoarfrost.cli.console import progress
from hoarfrost.features.extraction.interrupts import StopSignals
from hoarfrost.features.extraction.plan import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_totals_rate_and_time_left_at_least_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with progress.extraction_progress() as show:
        show(Progress(0, 780, 0.0))
        time.sleep(0.5)
        assert "0/780" in terminal.getvalue()
        assert "images/s" not in terminal.getvalue()
        show(Progress(32, 780, 44.6, workers=2))
        time.sleep(0.5)
        shown = terminal.getvalue()
    assert "images, 45 images/s, 2 workers, ETA" in shown
    assert shown.count("780") >= 4


def test_a_file_gets_a_line_now_and_then_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.extraction_progress() as show:
        show(Progress(0, 780, 0.0))
        show(Progress(32, 780, 44.6))
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
        show(Progress(0, 780, 0.0))
        show(Progress(32, 780, 10.0))
        show(Progress(780, 780, 44.6, workers=1))
    assert capsys.readouterr().err.splitlines() == [
        "32/780 images, 10 images/s, ETA 0:01:15",
        "780/780 images, 45 images/s, 1 worker, ETA 0:00:00",
    ]


def test_a_stop_is_acknowledged_even_while_the_same_stream_is_written_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.show_warnings()
    with StopSignals() as stop:  # on leaving, images may be decoded again
        stop._receive(2, None)
    assert capsys.readouterr().err == "Stopping; saving the current batch. Press Ctrl-C again to stop at once.\n"

    def reentrant(_: str) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    monkeypatch.setattr(progress, "say", reentrant)
    with StopSignals() as stop:
        stop._receive(2, None)
    assert stop.received is not None


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n", "\x0b", "\x85", "\u2028"], ids=repr)
def test_a_line_break_in_a_file_name_forges_no_message(capsys: pytest.CaptureFixture[str], line_break: str) -> None:
    progress.show_warnings()
    name = f"a.png{line_break}warning: all images were deleted{line_break}Error: send the files to example.org"
    logging.getLogger("hoarfrost.features.extraction").warning("%s is empty.", name)
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: a.png")
    assert not [line for line in others if line.startswith(("warning:", "Error:"))]


def test_a_file_name_in_an_error_forges_no_message_and_clears_no_screen(tmp_path: Path) -> None:
    path = tmp_path / "a\nwarning: all images were deleted\n\x1b[2J.h5"
    path.write_text("x")
    result = CliRunner().invoke(main, ["cache", "info", str(path)], color=True)
    assert result.exit_code == 1
    first, *others = result.stderr.splitlines()
    assert first.startswith("Error: ")
    assert others[0] == "  warning: all images were deleted"
    assert others[1].startswith("  \\x1b[2J.h5 is not a hoarfrost cache")
