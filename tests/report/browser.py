"""A real browser, where one is installed, driven over its own debugging protocol: what a page looks like there."""

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")


class Look(NamedTuple):
    """How a page is looked at: width in CSS pixels, colour scheme, `screen` or `print`."""

    width: int = 1000
    scheme: str = "light"
    medium: str = "screen"


PHONE = Look(375)
LOOKS = {
    "light": Look(),
    "dark": Look(scheme="dark"),
    "phone": PHONE,
    "phone-dark": Look(375, "dark"),
    "print": Look(720, medium="print"),
}


def installed() -> str | None:
    """The program of a browser, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """Opens pages one at a time; `evaluate` and `picture` are of the page that is open."""

    def __init__(self, address: str) -> None:
        self.address = address

    def look(self, page: Path, look: Look, script: str) -> tuple[Any, bytes]:
        """What `script` evaluates to on the page, and a picture (PNG) of all of it."""
        return asyncio.run(self._look(page, look, script))

    async def _look(self, page: Path, look: Look, script: str) -> tuple[Any, bytes]:
        async with aiohttp.ClientSession() as session:
            async with session.put(f"{self.address}/json/new") as answer:
                tab = await answer.json()
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                size = {
                    "width": look.width,
                    "height": 800,
                    "deviceScaleFactor": 1,
                    "mobile": look.width < 500,
                }
                await _say(socket, "Emulation.setDeviceMetricsOverride", **size)
                features = [{"name": "prefers-color-scheme", "value": look.scheme}]
                await _say(socket, "Emulation.setEmulatedMedia", media=look.medium, features=features)
                await _say(socket, "Page.navigate", url=page.as_uri())
                ready = "document.readyState == 'complete' && location.protocol == 'file:'"
                while not (await _value(socket, ready)):
                    await asyncio.sleep(0.05)
                found = await _value(socket, script)
                picture = await _say(socket, "Page.captureScreenshot", captureBeyondViewport=True)
            await session.get(f"{self.address}/json/close/{tab['id']}")
        return found, base64.b64decode(picture["data"])


async def _value(socket: aiohttp.ClientWebSocketResponse, script: str) -> Any:
    answer = await _say(socket, "Runtime.evaluate", expression=script, returnByValue=True)
    assert "exceptionDetails" not in answer, answer
    return answer["result"].get("value")


async def _say(socket: aiohttp.ClientWebSocketResponse, method: str, **parameters: Any) -> Any:
    await socket.send_json({"id": 1, "method": method, "params": parameters})
    async for message in socket:
        answer = json.loads(message.data)
        if answer.get("id") == 1:
            assert "error" not in answer, answer
            return answer["result"]
    raise AssertionError("the browser closed")


@contextmanager
def browser(program: str) -> Iterator[Browser]:
    """A browser without a window and with a profile of its own, as long as the context lasts."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        options += ["--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={profile}"]
        process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield Browser(f"http://127.0.0.1:{_port(Path(profile) / 'DevToolsActivePort', process)}")
        finally:
            process.terminate()
            process.wait(timeout=60)


def _port(file: Path, process: "subprocess.Popen[bytes]") -> str:
    """The port that the browser listens on, once it does."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if file.is_file() and (lines := file.read_text(encoding="utf-8").splitlines()):
            return lines[0]
        time.sleep(0.1)
    raise AssertionError("the browser did not start")
