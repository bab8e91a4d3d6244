"""What a user reads is in plain English: the phrases that CONTRIBUTING.md bans are in no message, page or template."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support.commands import ROOT

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
HEADING = "## Words"
SOURCES = sorted(path for folder in ("features", "pipeline") for path in (ROOT / folder).rglob("*.py"))
TEMPLATES = sorted((ROOT / "pipeline").rglob("*.j2"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", CONTRIBUTING, *sorted((ROOT / "docs").glob("*.md"))]


def banned() -> dict[str, re.Pattern[str]]:
    """Read the table's first column: "A, B" are two phrases, and "..." stands for a number."""
    table = CONTRIBUTING.read_text(encoding="utf-8").split(HEADING, 1)[1]
    cells = re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)
    phrases = [phrase.strip() for cell in cells for phrase in cell.split("`, `")]
    return {phrase: re.compile(pattern_of(phrase), re.IGNORECASE) for phrase in phrases}


def pattern_of(phrase: str) -> str:
    words = re.escape(phrase).replace(r"\ ", r"\s+").replace(r"\.\.\.", r"[\d.]+%?")
    return rf"(?<![\w-]){words}(?![\w-])"


BANNED = banned()
KEYS = (
    "a DICOM rescale slope of 0, or one or an intercept that is no number",
    "mend",
)  # in --json: scripts rely on them


def texts_of(source: str) -> Iterator[str]:
    """Return a file's texts: docstrings, messages, and the constant parts of formatted ones, without what is formatted."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "0" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def prose_of(page: str) -> str:
    """Return a page without its code, a template's own too, and without the table of what is banned."""
    page = re.sub(r"\{[{%].*?[%}]\}", "0", page.split(HEADING, 1)[0], flags=re.DOTALL)
    return re.sub(r"`[^`\n]*`", "0", re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE))


def found_in(text: str) -> list[str]:
    return [phrase for phrase, pattern in BANNED.items() if pattern.search(text)]


def test_table_was_read() -> None:
    assert len(BANNED) > 30
    assert found_in("Mend the split column, or go on with --allow-leakage.") == ["mend", "go on"]
    assert found_in("threshold from 0.267 on") == ["from ... on"]
    assert found_in("Fix the split column or the folders, or continue with --allow-leakage.") == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_has_no_banned_phrase(path) -> None:  # type: ignore[no-untyped-def]
    texts = list(texts_of(path.read_text(encoding="utf-8")))
    assert [(phrase, text[:100]) for text in texts if text not in KEYS for phrase in found_in(text)] == []


@pytest.mark.parametrize("path", [*PAGES, *TEMPLATES], ids=lambda path: str(path.relative_to(ROOT)))
def test_page_has_no_banned_phrase(path) -> None:  # type: ignore[no-untyped-def]
    text = prose_of(path.read_text(encoding="utf-8"))
    assert [
        (phrase, text[max(0, hit.start() - 40) : hit.end() + 40])
        for phrase, pattern in BANNED.items()
        for hit in pattern.finditer(text)
    ] == []
