"""A headless Chromium driven through the DevTools protocol over two pipes; needs no package."""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path


class Chromium:
    """One page. `requests` holds the address of every request it made, `errors` what its console called an error."""

    def __init__(self, profile: Path, *, width: int = 1280, height: int = 900):
        take, self._write = os.pipe()
        self._read, give = os.pipe()

        def pipes():
            # 3: read by the browser, 4: written by it. Both ends move out of the way of each other first.
            a, b = os.dup(take), os.dup(give)
            for fd, place in ((a, 3), (b, 4)):
                os.dup2(fd, place)

        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
                   "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
                   f"--user-data-dir={profile}", f"--window-size={width},{height}"]  # fmt: skip
        self._process = subprocess.Popen(
            [executable(), *options, "about:blank"], preexec_fn=pipes, close_fds=False, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(take)
        os.close(give)
        self._count, self._rest, self._session = 0, b"", None
        self.requests, self.errors = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def resize(self, width, height):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def call(self, method, **params):
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for answer in self._messages(deadline):
                if answer.get("id") == self._count:
                    assert "error" not in answer, (method, answer["error"])
                    return answer["result"]
                self._note(answer)
        raise TimeoutError(method)

    def _messages(self, deadline):
        if not select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return []
        data = self._rest + os.read(self._read, 1 << 20)
        assert data, "the browser has gone"
        *whole, self._rest = data.split(b"\0")
        return [json.loads(part) for part in whole]

    def _note(self, event):
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"]["text"])

    def js(self, expression):
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, expression, *, within_s=30.0):
        """Wait until the expression is true."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if self.js(f"!!({expression})"):
                return
            time.sleep(0.1)
        raise TimeoutError(f"{expression}; the page says: {self.js('document.body.innerText')[:800]}")

    def files(self, selector, *paths):
        """Choose files in an <input type=file>."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def type_into(self, selector, text):
        self.js(f"document.querySelector({selector!r}).focus(), document.querySelector({selector!r}).select()")
        self.call("Input.insertText", text=text)

    def picture(self, path, *, whole=True):
        made = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(made["data"]))

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._write)
        os.close(self._read)


def executable():
    """Path of Chromium or Chrome, None without one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
