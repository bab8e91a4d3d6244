"""Files of the repository outside docs/ that the site shows: a page links to them as a forge does, `](../FILE)`."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a copy of each file outside docs/ that a page links to."""
    pages = [Path(page.abs_src_path or "").read_text(encoding="utf-8") for page in files.documentation_pages()]
    for name in sorted({name for page in pages for name in OUTSIDE.findall(page)}):
        files.append(File.generated(config, f"repository/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Lead links out of docs/ to these copies."""
    return OUTSIDE.sub(r"](repository/\1", markdown)
