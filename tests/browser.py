"""A headless Chromium, told what to do over a pipe: what a page asks for, says and looks like."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--remote-debugging-pipe")  # fmt: skip

# a browser reads from descriptor 3 and writes to 4
START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, wanted in zip(ends, (3, 4)):
    os.dup2(end, wanted)
os.execv(sys.argv[3], sys.argv[3:])
"""


def chromium():
    """The path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A browser with one page at a time."""

    def __init__(self, profile):
        to_browser, ours_out = os.pipe()
        ours_in, from_browser = os.pipe()
        words = [chromium(), *FLAGS, f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            [sys.executable, "-SEc", START, str(to_browser), str(from_browser), *words],
            pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self.reading, self.writing = ours_in, ours_out
        self.numbers, self.rest, self.events, self.session = itertools.count(1), b"", [], None

    def close(self):
        """End it."""
        self.process.terminate()
        self.process.wait(20)
        os.close(self.reading)
        os.close(self.writing)

    def call(self, method, **parameters):
        """Send a command, and wait for its result."""
        answer = self.ask(method, **parameters)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def ask(self, method, **parameters):
        """Send a command, and wait for its answer, which may be that it failed."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == number:
                return answer
            self.events.append(answer)

    def read(self, seconds=60):
        """The next message."""
        end = time.monotonic() + seconds
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.reading], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser says nothing"
            self.rest += os.read(self.reading, 1 << 16)
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, path, width=1280, height=900, dark=False, motion=True, script=True):
        """Show a file, from nothing, in a window of that size."""
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [("prefers-color-scheme", "dark" if dark else "light"),
                    ("prefers-reduced-motion", "no-preference" if motion else "reduce")]  # fmt: skip
        self.call("Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in features])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.events = []
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())

    def told(self, method):
        """What it was told since the page was opened."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def errors(self):
        """What went wrong: exceptions, and whatever stands in the console."""
        return [
            *self.told("Runtime.exceptionThrown"),
            *self.told("Runtime.consoleAPICalled"),
            *self.told("Log.entryAdded"),
        ]

    def requests(self):
        """Addresses that were asked for, but for the file itself and what lies within it."""
        asked = [event["request"]["url"] for event in self.told("Network.requestWillBeSent")]
        return [url for url in asked[1:] if not url.startswith("data:")]

    def value(self, expression):
        """Of JavaScript."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def box(self, selector):
        """Width and height of the first element of that kind; None where it is not shown."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        return self.ask("DOM.getBoxModel", nodeId=node).get("result", {}).get("model")

    def press(self, key, code=0):
        """A key."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def screenshot(self, path, whole=True):
        """A picture of the page, or of what the window shows of it."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        Path(path).write_bytes(base64.b64decode(picture))
