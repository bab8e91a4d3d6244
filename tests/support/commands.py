"""What fixtures that run something hand to tests."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

ROOT = Path(__file__).parents[2]
NumberOfThreads = Callable[[int], None]


class Output(NamedTuple):
    """What a command left behind."""

    status: int
    stdout: str
    stderr: str


class Hoarfrost(Protocol):
    """Runs `hoarfrost` with arguments in this process."""

    def __call__(self, *arguments: object) -> Output: ...


class RunPython(Protocol):
    """Runs Python with arguments in a process of its own, from the repository's root."""

    def __call__(self, *arguments: object, **environment: str) -> Output: ...
