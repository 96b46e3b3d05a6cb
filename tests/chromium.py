"""A headless Chromium driven over its DevTools protocol, with the standard library alone."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
HOW = "headless Chromium is not installed: apt-get install -y chromium"
START_S = 60.0


def found() -> str | None:
    """Where Chromium lies, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page: calls of the protocol, and the events that came meanwhile."""

    def __init__(self, url: str) -> None:
        host, _, path = url.removeprefix("ws://").partition("/")
        name, _, port = host.partition(":")
        self.events: list[dict[str, Any]] = []
        self._socket = socket.create_connection((name, int(port)), timeout=START_S)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._file = self._socket.makefile("rb")
        while self._file.readline().strip():
            pass
        self._last = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the protocol."""
        self._last += 1
        self._send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._receive())
            if message.get("id") == self._last:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def evaluate(self, code: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, code: str, limit_s: float = START_S) -> None:
        """Waits until an expression holds."""
        end = time.monotonic() + limit_s
        while not self.evaluate(code):
            assert time.monotonic() < end, f"not so: {code}; {self.complaints()}"
            time.sleep(0.1)

    def open(self, path: Path, *, width: int = 1440, dark: bool = False, media: str = "") -> None:
        """Opens a file and waits until its charts are drawn."""
        self.events.clear()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.until("document.documentElement?.dataset.drawn !== undefined")

    def complaints(self) -> list[str]:
        """What the page wrote to the console, raised or was refused."""
        said: list[str] = []
        for event in self.events:
            if event["method"] == "Runtime.exceptionThrown":
                details = event["params"]["exceptionDetails"]
                said.append(details.get("exception", {}).get("description", details["text"]))
            elif event["method"] == "Log.entryAdded":
                said.append(event["params"]["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled":
                said.append(json.dumps(event["params"]["args"])[:500])
        return said

    def requests(self) -> list[str]:
        """Every address that was asked for."""
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def screenshot(
        self, path: Path, *, clip: tuple[float, float, float, float] | None = None
    ) -> None:
        """The whole page as PNG, or a part of it."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        x, y, width, height = clip or (0.0, 0.0, size["width"], size["height"])
        shot = self.call(
            "Page.captureScreenshot",
            captureBeyondViewport=True,
            clip={"x": x, "y": y, "width": width, "height": height, "scale": 1},
        )
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf_pages(self) -> int:
        """How many pages of paper it takes."""
        data = base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])
        return data.count(b"/Type /Page\n") or data.count(b"/Type /Page ")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def _send(self, text: str) -> None:
        data = text.encode()
        size = len(data)
        head = bytearray([0x81])
        if size < 126:
            head.append(0x80 | size)
        elif size < 65536:
            head += bytes([0x80 | 126]) + size.to_bytes(2, "big")
        else:
            head += bytes([0x80 | 127]) + size.to_bytes(8, "big")
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))
        self._socket.sendall(bytes(head) + mask + masked)

    def _receive(self) -> bytes:
        whole = b""
        while True:
            first, second = self._file.read(2)
            size = second & 0x7F
            if size == 126:
                size = int.from_bytes(self._file.read(2), "big")
            elif size == 127:
                size = int.from_bytes(self._file.read(8), "big")
            data = self._file.read(size)
            if first & 0x0F in (0x0, 0x1, 0x2):
                whole += data
                if first & 0x80:
                    return whole


@contextlib.contextmanager
def tab() -> Iterator[Tab]:
    """A tab of a browser of its own."""
    name = found()
    assert name is not None, HOW
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [
                name,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--no-first-run",
                "--disable-background-networking",
                "--remote-debugging-port=0",
                f"--user-data-dir={folder}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = _port(Path(folder) / "DevToolsActivePort")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=START_S) as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
            held = Tab(pages[0]["webSocketDebuggerUrl"])
            yield held
            held.close()
        finally:
            process.terminate()
            process.wait(timeout=START_S)


def _port(path: Path) -> int:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if path.exists() and (lines := path.read_text().split()):
            return int(lines[0])
        time.sleep(0.1)
    raise AssertionError(f"Chromium did not start within {START_S:g} s")
