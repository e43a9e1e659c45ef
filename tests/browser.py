"""A headless Chromium, driven over its DevTools protocol."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --hide-scrollbars --remote-debugging-port=0"
)
PATIENCE = 240.0  # seconds, on a machine that is busy with other tests

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")


class Page:
    """One page: opened at addresses, asked in JavaScript, photographed."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.call("Page.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends one command of the protocol; returns its answer."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def ask(self, expression: str) -> Any:
        """Evaluates JavaScript; returns its value."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Returns the value of an expression once it is true."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with suppress(AssertionError):  # a page that is being left
                if value := self.ask(expression):
                    return value
            time.sleep(0.2)
        raise AssertionError(f"{expression} did not come true; the page says: {self.text[:2000]}")

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def photograph(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    @property
    def text(self) -> str:
        return self.ask("document.body ? document.body.innerText : ''") or ""


@contextmanager
def chromium_page(folder: Path, width: int = 1440, height: int = 1000) -> Iterator[Page]:
    """Starts a browser with a profile of its own; yields its first page.

    Arguments:
        folder: Where its profile is.
        width: Of the window, in pixels.
        height: Likewise.
    """
    profile = folder / "profile"
    command = [
        "chromium",
        *FLAGS.split(),
        f"--window-size={width},{height}",
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    with (folder / "chromium.log").open("w") as log:
        browser = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        with connect(_address(profile, browser), max_size=None, open_timeout=60) as socket:
            page = Page(socket)
            page.size(width, height)
            yield page
    finally:
        browser.terminate()
        browser.wait(30)


def _address(profile: Path, browser: subprocess.Popen[bytes]) -> str:
    """Returns the address of the first page's socket, once the browser has written down its port."""
    import urllib.request

    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert browser.poll() is None, "chromium has ended"
        with suppress(OSError, ValueError, IndexError, StopIteration):
            port = int((profile / "DevToolsActivePort").read_text().split()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as answer:
                return next(one["webSocketDebuggerUrl"] for one in json.load(answer) if one["type"] == "page")
        time.sleep(0.1)
    raise AssertionError("chromium does not answer")
