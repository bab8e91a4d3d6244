"""Headless Chromium, for what only a browser can tell."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOW_TO_GET_IT = "Chromium is not installed. On Debian and Ubuntu: apt install chromium; else name it: CHROMIUM=PATH."
SECONDS = 60


def find_chromium() -> str | None:
    """Return the browser's path, or None where there is none."""
    found = (shutil.which(name) for name in (os.environ.get("CHROMIUM") or "", *NAMES) if name)
    return next((path for path in found if path), None)


def open_page(page: Path, *arguments: str) -> str:
    """Open a local page, and give what Chromium prints."""
    browser = find_chromium()
    if browser is None:
        raise FileNotFoundError(HOW_TO_GET_IT)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
        options = ["--headless", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}", *as_root]
        command = [browser, *options, *arguments, page.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS).stdout
