"""A headless Chromium for tests, spoken to by Chrome's DevTools protocol over a pipe: no driver, no port, no library."""

import base64
import fcntl
import json
import os
import select
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT_S = 120.0
_FIRST_FREE = 20  # descriptors above those that the browser gets as 3 and 4


def find_chromium() -> str | None:
    """Return the path of a Chromium, or None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class BrowserError(Exception):
    """The browser ended, did not answer, or refused."""


class Browser:
    """One browser; a context manager."""

    def __init__(self, program: str, profile: Path) -> None:
        commands_in, self._commands = os.pipe()
        self._answers, answers_out = os.pipe()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, _FIRST_FREE) for end in (commands_in, answers_out)]
        arguments = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--no-first-run", "--force-color-profile=srgb", "--remote-debugging-pipe", f"--user-data-dir={profile}",
            "about:blank",
        ]  # fmt: skip
        log = str(profile.with_suffix(".log"))
        self._process = os.posix_spawn(
            program, arguments, os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs[0], 3), (os.POSIX_SPAWN_DUP2, theirs[1], 4),
                (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT, 0o600),
            ],
        )  # fmt: skip
        for end in (commands_in, answers_out, *theirs):
            os.close(end)
        self._number, self._buffer = 0, b""
        self.listeners: dict[str, Callable[[str, dict[str, Any]], None]] = {}

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call("Browser.close")
        except (BrowserError, OSError):
            os.kill(self._process, 9)
        os.waitpid(self._process, 0)
        os.close(self._commands)
        os.close(self._answers)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and give its result; events that come meanwhile go to their listeners."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | (
            {"sessionId": session} if session else {}
        )
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._commands, content) :]
        end = time.monotonic() + WAIT_S
        while True:
            answer = self._next(end, method)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def wait(self, is_done: Callable[[], bool], what: str) -> None:
        """Read events until something has happened."""
        end = time.monotonic() + WAIT_S
        while not is_done():
            self._next(end, what)

    def _next(self, end: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self._answers, 1 << 20) if ready else b""
            if not part:
                raise BrowserError(f"{what}: the browser {'ended' if ready else 'did not answer in time'}")
            self._buffer += part
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        if "method" in message and message.get("sessionId") in self.listeners:
            self.listeners[message["sessionId"]](message["method"], message["params"])
        return message


@dataclass
class Tab:
    """One page: what it requested, and what it complained of."""

    browser: Browser
    session: str
    target: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    is_there: bool = False
    is_loaded: bool = False

    def hear(self, method: str, event: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(event["exceptionDetails"].get("exception", event)))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.complaints.append(event["entry"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self.complaints.append(f"dialog: {event['message']}")
        elif method == "Page.frameNavigated" and event["frame"]["url"] != "about:blank":
            self.is_there = True
        elif method == "Page.loadEventFired":
            self.is_loaded = self.is_there  # a tab begins with an empty page, which is loaded too

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def run(self, script: str) -> Any:
        """Return the value of an expression; an error in it is raised."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise BrowserError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self) -> bytes:
        found = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        return base64.b64decode(found["data"])

    def press(self, key: str, code: int) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def close(self) -> None:
        self.browser.listeners.pop(self.session)
        self.browser.call("Target.closeTarget", targetId=self.target)


def open_tab(
    browser: Browser,
    page: Path | str,
    *,
    width: int = 1280,
    height: int = 900,
    media: str = "",
    features: Mapping[str, str] | None = None,
    scripting: bool = True,
    first: Sequence[str] = (),
) -> Tab:
    """Open a file or a URL; `media` may be "print", `features` as {"prefers-color-scheme": "dark"}, `first` runs before."""
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    tab = Tab(browser, session, target)
    browser.listeners[session] = tab.hear
    for domain in ("Page", "Runtime", "Network", "Log"):
        tab.call(f"{domain}.enable")
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
    wanted = [{"name": name, "value": value} for name, value in (features or {}).items()]
    tab.call("Emulation.setEmulatedMedia", media=media, features=wanted)
    if not scripting:
        tab.call("Emulation.setScriptExecutionDisabled", value=True)
    for script in first:
        tab.call("Page.addScriptToEvaluateOnNewDocument", source=script)
    tab.requests.clear()
    tab.call("Page.navigate", url=page.resolve().as_uri() if isinstance(page, Path) else page)
    browser.wait(lambda: tab.is_loaded, f"loading {page}")
    return tab
