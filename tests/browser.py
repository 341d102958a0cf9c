"""A real browser, Debian's headless Chromium, spoken to over a pipe in its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 30
"""Longer than anything here takes."""
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--hide-scrollbars"),
    *("--remote-debugging-pipe", "--force-device-scale-factor=1", "--disable-dev-shm-usage"),
)


def chromium() -> str | None:
    """Where the browser is."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One page of a headless Chromium; what it logs, asks for and opens is kept.

    `logged`: console messages, uncaught errors and what the browser itself complains of. `requests`: every address.
    """

    def __init__(self, folder: Path) -> None:
        command = [str(chromium()), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()
        redirect = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", *command],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": str(folder)},
        )
        os.close(to_read)
        os.close(to_write)
        os.set_blocking(self._in, False)
        self._rest, self._number, self._session = b"", 0, ""
        self.logged: list[str] = []
        self.requests: list[str] = []
        (page,) = (one for one in self("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self._session = self("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command of the protocol."""
        self._number += 1
        told = {"id": self._number, "method": method, "params": parameters}
        told |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(told).encode() + b"\0")
        while (message := self._message()).get("id") != self._number:
            self._keep(message)
        assert "error" not in message, (method, message["error"])
        return dict(message["result"])

    def _message(self) -> dict[str, Any]:
        until = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            assert time.monotonic() < until, "the browser does not answer"
            try:
                self._rest += os.read(self._in, 1 << 20)
            except BlockingIOError:
                time.sleep(0.002)
        first, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(first))

    def _keep(self, message: dict[str, Any]) -> None:
        told = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled":
                self.logged.append(
                    f"{told['type']}: {[one.get('value', one.get('description')) for one in told['args']]}"
                )
            case "Runtime.exceptionThrown":
                self.logged.append(f"exception: {told['exceptionDetails']}")
            case "Log.entryAdded":
                self.logged.append(f"{told['entry']['level']}: {told['entry']['text']}")
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Page.javascriptDialogOpening":
                self.logged.append(f"dialog: {told['message']}")

    def open(self, file: Path, hash_: str = "") -> None:
        """Opens a file in an empty page; what was kept is forgotten."""
        self("Page.navigate", url="about:blank")
        self.until("location.href === 'about:blank'")
        self.logged.clear()
        self.requests.clear()
        self("Page.navigate", url=file.as_uri() + hash_)
        self.until("location.protocol === 'file:' && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str) -> Any:
        """The value of an expression once it is true; elements have no value."""
        end = time.monotonic() + SECONDS
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.01)
        return value

    def at(self, selector: str, *, corner: bool = False) -> tuple[float, float]:
        """The middle, or just inside the corner, of the first element that matches, brought into view."""
        x, y, width, height = self.run(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)}); one.scrollIntoView({{block: 'center'}});"
            "const box = one.getBoundingClientRect(); return [box.x, box.y, box.width, box.height]; })()"
        )
        return (x + 3, y + 3) if corner else (x + width / 2, y + height / 2)

    def hover(self, selector: str, *, corner: bool = False) -> None:
        """Moves the mouse there; `corner`: to the upper left corner."""
        x, y = self.at(selector, corner=corner)
        for aside in (1, 0):  # a mouse does not jump
            self("Input.dispatchMouseEvent", type="mouseMoved", x=x + aside, y=y)

    def click(self, selector: str) -> None:
        """Clicks there."""
        x, y = self.at(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Presses one key: "Tab", "ArrowRight", "Enter", "Escape" or a letter."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        told = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
        self("Input.dispatchKeyEvent", type="keyDown", **told, **({"text": text} if text else {}))
        self("Input.dispatchKeyEvent", type="keyUp", **told)

    def size(self, width: int, height: int) -> None:
        """The size of the window in CSS pixels."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)

    def scheme(self, name: str) -> None:
        """What the reader prefers: "light" or "dark"."""
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def picture(self, file: Path) -> None:
        """Writes what is seen as PNG."""
        file.write_bytes(base64.b64decode(self("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """Ends the browser."""
        end: Callable[[], object] = self._process.terminate
        end()
        self._process.wait(SECONDS)
        os.close(self._out)
        os.close(self._in)
