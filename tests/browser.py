"""Headless Chromium, driven through the pipes of its DevTools protocol: no library, no port."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

# what is wider than its place, but for what scrolls inside of its own box
WIDE = """[...document.querySelectorAll('body *')].filter(e => !e.closest('svg, .wide') &&
    e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
# the contrast of each text with the page, as WCAG 2 defines it
CONTRAST = """(() => {
    const light = c => c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const numbers = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
    const page = light(numbers(getComputedStyle(document.body).backgroundColor));
    return [...document.querySelectorAll('h1, h2, p, td, th, dt, dd, figcaption, svg text')].map(e => {
        const style = getComputedStyle(e), ink = light(numbers(e.closest('svg') ? style.fill : style.color));
        return (Math.max(ink, page) + .05) / (Math.min(ink, page) + .05);
    });
})()"""
SIZES = "[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height)"


class Browser:
    """A page of a browser.

    Attributes:
        complaints: the errors and warnings of its console, and exceptions that no script caught.
        requests: the addresses that pages fetched.
    """

    def __init__(self, send, receive):
        self._send, self._receive, self._number, self._session = send, receive, 0, None
        self.complaints, self.requests = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Sends a command and returns its result; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self._send.write(json.dumps(message).encode() + b"\0")
        self._send.flush()
        while (answer := self._next()).get("id") != self._number:
            self._keep(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def open(self, path, width, dark=False):
        """Opens a file at a width in pixels, and waits until it is loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        while (event := self._next()).get("method") != "Page.loadEventFired":
            self._keep(event)

    def value(self, expression):
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self):
        """The whole page as the bytes of a PNG file."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def _next(self):
        text = bytearray()
        while (letter := self._receive.read(1)) != b"\0":
            assert letter, "the browser has ended"
            text += letter
        return json.loads(text)

    def _keep(self, event):
        method, facts = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(facts["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(facts["args"]))
        elif method == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.complaints.append(facts["entry"]["text"])


@contextlib.contextmanager
def browser(profile):
    """A block with a browser, whose files are in the folder ``profile``."""
    ours, theirs = os.pipe(), os.pipe()  # (its descriptor 3 reads, ours writes), (its 4 writes, ours reads)
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank",
    ]  # fmt: skip
    # the protocol's descriptors are 3 and 4; the pipes may have these numbers the other way round
    numbers = (
        "import fcntl, os, sys; ends = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) for n in sys.argv[1:3]]; "
        "[os.dup2(end, n) for n, end in enumerate(ends, 3)]; os.execv(sys.argv[3], sys.argv[3:])"
    )
    ends = (ours[0], theirs[1])
    process = subprocess.Popen(
        [sys.executable, "-c", numbers, *map(str, ends), *command],
        pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(ours[0])
    os.close(theirs[1])
    try:
        with os.fdopen(ours[1], "wb") as send, os.fdopen(theirs[0], "rb") as receive:
            yield Browser(send, receive)
    finally:
        process.terminate()
        process.wait(timeout=20)


def check_page(opened, path, width, dark):
    """A page is complete, fits the width, can be read, and asks nothing of the network."""
    opened.open(path, width, dark)
    assert opened.complaints == []
    assert [address for address in opened.requests if not address.startswith(("file:", "data:"))] == []
    assert opened.value("document.documentElement.scrollWidth") <= width
    assert opened.value(WIDE) == []
    contrasts = opened.value(CONTRAST)
    assert len(contrasts) > 60
    assert min(contrasts) >= 4.5  # WCAG 2, level AA
    assert min(opened.value(SIZES)) >= 9  # pixels: the numbers on the axes can be read
    assert opened.value("[...document.images].every(i => i.naturalWidth > 0)") is True
