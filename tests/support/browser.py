"""A headless Chromium, told what to do over its DevTools: a page's text and its picture."""

import asyncio
import base64
import os
import shutil
import subprocess
import time
from pathlib import Path

import aiohttp  # one of Lightning's own dependencies

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = (1500, 1100)
TEXT = """(function texts(node) {
  if (node.nodeType == Node.TEXT_NODE) return node.textContent.trim() + "\\n";
  if (["STYLE", "SCRIPT", "TEMPLATE", "DOM-MODULE"].includes(node.nodeName)) return "";
  if (node.nodeType == Node.ELEMENT_NODE && !node.checkVisibility()
      && getComputedStyle(node).display != "contents") return "";
  const inside = [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes];
  return inside.map(texts).join("");
})(document.body)"""
"""What a page shows, in its components' shadow trees, too."""


def find():
    """The browser, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def look(url, screens, folder, seconds=60):
    """Open ``url#screen`` for each screen until it shows the words expected of it.

    Args:
        url: of the server.
        screens: the words by the screen's name.
        folder: of the pictures, one a screen.
        seconds: to wait for a screen at most.

    Returns:
        What each screen shows in the end, a line for each piece of text.
    """
    profile = folder / "profile"
    command = [
        find(), "--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        f"--window-size={SIZE[0]},{SIZE[1]}", f"--user-data-dir={profile}",
        "--remote-debugging-port=0", "about:blank",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]  # fmt: skip
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _wait_for_port(profile / "DevToolsActivePort", seconds)
        return asyncio.run(_look(port, url, screens, folder, seconds))
    finally:
        browser.terminate()
        browser.wait()


def _wait_for_port(file: Path, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if file.is_file() and (lines := file.read_text().split()):
            return lines[0]
        time.sleep(0.1)
    raise TimeoutError("the browser does not start")


async def _look(port, url, screens, folder, seconds):
    texts = {}
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json") as answer:
            page = next(p for p in await answer.json() if p["type"] == "page")
        async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            for screen, words in screens.items():
                await _ask(socket, "Page.navigate", url="about:blank")
                await _ask(socket, "Page.navigate", url=f"{url}#{screen}")
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    await asyncio.sleep(0.5)
                    result = await _ask(socket, "Runtime.evaluate", expression=TEXT)
                    lines = result["result"].get("value", "").split("\n")
                    texts[screen] = "\n".join(filter(None, lines))
                    if all(word in texts[screen] for word in words):
                        break
                await asyncio.sleep(2)  # until the charts are drawn
                picture = await _ask(socket, "Page.captureScreenshot")
                (folder / f"{screen}.png").write_bytes(base64.b64decode(picture["data"]))
    return texts


async def _ask(socket, method, **parameters):
    await socket.send_json({"id": 1, "method": method, "params": parameters})
    while True:
        answer = await socket.receive_json()
        if answer.get("id") == 1:
            return answer["result"]
