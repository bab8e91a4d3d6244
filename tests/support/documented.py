"""What README.md and docs/ show: their commands, run as they stand, and the outputs printed below them.

A ```console block has commands (`$ hoarfrost ...`), each followed by its output; a ```python block may be followed by a
```text block with what it printed. `python -m tests.support.documented WEIGHTS` (`make docs RECORD=1`) runs them again in a
scratch folder and writes the new outputs in place. Commands in ```sh blocks have no output here; tests run them too.
"""

import io
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.commands import ROOT

README = ROOT / "README.md"
PREPARING = ("hoarfrost extract", "hoarfrost train", "grep")
WHERE = "/data"  # the scratch folder's name in recorded outputs

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PRINTED = re.compile(r"\n+```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:.*\\\n)*.*\n?")
_PROGRESS = re.compile(
    r"^(?:[\d,]+/[\d,]+ images, .*|training .*|fold \d.*|.*: replaces the run of .*)\n", re.MULTILINE
)


@dataclass(frozen=True)
class Step:
    """A command or a block of Python, and the span of its recorded output in the page (None: it has none)."""

    kind: str  # "console", "sh" or "python"
    source: str
    output: tuple[int, int] | None = None

    def fails(self, text: str) -> bool:
        """Return whether the recorded output is that of a command that fails."""
        return self.output is not None and "\nError: " in "\n" + text[slice(*self.output)]


def pages() -> list[Path]:
    """Return README.md, and the pages of docs/."""
    return [README, *sorted((ROOT / "docs").glob("*.md"))]


def steps_of(text: str) -> Iterator[Step]:
    """Read a page's steps, in their order."""
    for fence in _FENCE.finditer(text):
        kind, body, start = fence[1], fence[2], fence.start(2)
        if kind == "console":
            yield from _console(body, start)
        elif kind == "sh":
            lines = (re.split(r"  +#", line)[0].strip() for line in body.replace("\\\n", " ").splitlines())
            yield from (Step(kind, line) for line in lines if line)
        elif kind == "python":
            printed = _PRINTED.match(text, fence.end())
            yield Step(kind, body, printed.span(1) if printed else None)


def _console(body: str, start: int) -> Iterator[Step]:
    begins = [found.start() for found in re.finditer(r"^\$ ", body, re.MULTILINE)]
    for begin, end in zip(begins, [*begins[1:], len(body)], strict=True):
        command = _COMMAND.match(body, begin)
        assert command is not None
        source = " ".join(command[0].removeprefix("$ ").replace("\\\n", " ").split())
        yield Step("console", source, (start + command.end(), start + end))


@dataclass
class Runner:
    """Runs steps in a folder; `weights` is the checkpoint that `extract` uses where it names none."""

    place: Path
    weights: str | None = None
    names: dict[str, Any] = field(default_factory=dict)  # of the page's Python

    def run(self, step: Step) -> tuple[int, str]:
        """Run a step; return its exit status, and what it printed, without progress and this machine's paths."""
        with chdir(self.place):
            status, printed = self._python(step.source) if step.kind == "python" else self._command(step.source)
        here = {
            str(self.place): WHERE,
            sys.prefix: ".venv",
            str(Path.home()): "~",
            platform.platform(): platform.system(),
        }
        for path, name in here.items():
            printed = printed.replace(path, name)
        return status, "".join(f"{line.rstrip()}\n" for line in _PROGRESS.sub("", printed).splitlines())

    def _python(self, source: str) -> tuple[int, str]:
        return _printed(lambda: exec(compile(source, "docs", "exec"), self.names), with_warnings=False)

    def _command(self, line: str) -> tuple[int, str]:
        if not line.startswith("hoarfrost "):
            done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, check=False)
            return done.returncode, done.stdout + done.stderr
        line, _, pipe = line.partition(" | ")
        arguments = shlex.split(line)[1:]
        if self.weights is not None and arguments[0] == "extract" and "--weights" not in arguments:
            arguments += ["--weights", self.weights]
        if (
            arguments[0] == "train"
        ):  # each page trains as if it were the first, in what README.md left, reports included
            arguments.append("--overwrite")
        status, printed = _printed(lambda: _hoarfrost(arguments), with_warnings=not pipe)
        if pipe:
            printed = subprocess.run(pipe, shell=True, input=printed, capture_output=True, text=True, check=True).stdout
        return status, printed


def _hoarfrost(arguments: list[str]) -> None:
    from hoarfrost.cli import main

    main(arguments, prog_name="hoarfrost")


def _printed(call: Callable[[], object], *, with_warnings: bool) -> tuple[int, str]:
    out, status = io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(out if with_warnings else sys.stderr):
        try:
            call()
        except SystemExit as ended:
            status = int(ended.code or 0)
    return status, out.getvalue()


def recorded(text: str, run: Callable[[Step], tuple[int, str]]) -> str:
    """Return a page with its outputs made anew.

    Steps that have no output are not run, but for commands before the first one that has: they prepare it.
    """
    made, end = "", 0
    steps = list(steps_of(text))
    first = next((place for place, step in enumerate(steps) if step.kind == "console"), 0)
    for place, step in enumerate(steps):
        if place < first and step.kind == "sh" and step.source.startswith(PREPARING):
            run(step)
        if step.output is not None:
            status, printed = run(step)
            if bool(status) != step.fails(text):
                sys.exit(f"{step.source}\nended with status {status}:\n{printed}")
            made, end = made + text[end : step.output[0]] + printed, step.output[1]
    return made + text[end:]


def main(weights: str) -> None:
    """Record README.md in a scratch folder, and each page of docs/ in what README.md leaves there."""
    from hoarfrost.features.encoder import backbone

    load, file = backbone.load_weights, Path(weights).resolve(strict=True)
    backbone.load_weights = lambda spec, encoder: load(file.name if spec == "imagenet" else spec, encoder)
    with tempfile.TemporaryDirectory() as scratch:
        place, kept = Path(scratch) / "data", Path(scratch) / "kept"
        place.mkdir()
        (place / file.name).symlink_to(file)
        for page in pages():
            if page != README:  # at the same place: the cache knows where its images are
                shutil.rmtree(place)
                shutil.copytree(kept, place, symlinks=True)
            text = page.read_text(encoding="utf-8")
            again = recorded(text, Runner(place, file.name).run)
            page.write_text(again, encoding="utf-8")
            print(f"{page.relative_to(ROOT)}: {'new outputs' if again != text else 'as it was'}", flush=True)
            if page == README:
                shutil.copytree(place, kept, symlinks=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
