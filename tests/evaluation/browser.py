"""A headless Chromium, driven through the parts of its debugging protocol that the tests of pages need."""

import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",  # the sandbox does not start for root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Otherwise a sandboxed frame gets its own process, which this connection cannot see.
    "--disable-features=IsolateSandboxedIframes",
    "--remote-debugging-port=0",
)
TIMEOUT_S = 60


def find_chromium() -> str | None:
    """Return the path of an installed Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page in its own Chromium process."""

    def __init__(self, program: str) -> None:
        """Start Chromium, and connect to its only page."""
        # Chromium may still write files while the folder is being removed.
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._socket = websocket.create_connection(
                self._debugging_address(), timeout=TIMEOUT_S, suppress_origin=True
            )
        except BaseException:
            self._end()
            raise
        self._number = 0
        self._session = ""
        self.complaints: list[str] = []
        """Script errors, console errors, and violations of the page's security policy."""
        self.contexts: list[int] = []
        """Execution contexts of the page and its frames, in the order of their creation."""
        self.loaded = False
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def _debugging_address(self) -> str:
        file = Path(self._folder.name) / "DevToolsActivePort"
        deadline = time.monotonic() + TIMEOUT_S
        while not (file.is_file() and len(lines := file.read_text().splitlines()) == 2):
            assert time.monotonic() < deadline, "Chromium did not open its debugging port"
            assert self._process.poll() is None, "Chromium ended"
            time.sleep(0.05)
        return f"ws://127.0.0.1:{lines[0]}{lines[1]}"

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the debugging protocol, and return its result."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters, **session}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            self.complaints.append(str([argument.get("value") for argument in parameters["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(parameters["entry"]["text"])
        elif method == "Runtime.executionContextCreated":
            self.contexts.append(parameters["context"]["id"])
        elif method == "Runtime.executionContextsCleared":
            self.contexts.clear()
        elif method == "Page.loadEventFired":
            self.loaded = True

    def open(self, page: Path | str, width: int, height: int = 900) -> None:
        """Open a file or an address in a window of the given size in CSS pixels, and wait until it has loaded."""
        mobile = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.complaints.clear()
        self.loaded = False
        self.call("Page.navigate", url=page if isinstance(page, str) else page.absolute().as_uri())
        while not self.loaded:
            self._note(json.loads(self._socket.recv()))

    def ask(self, expression: str, frame: int = 0) -> Any:
        """Return the value of a JavaScript expression in the page (frame 0) or in one of its frames, counted from 1."""
        result = self.call(
            "Runtime.evaluate",
            expression=expression,
            contextId=self.contexts[frame],
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, expression: str, frame: int = 0) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + TIMEOUT_S
        while not self.ask(expression, frame):
            assert time.monotonic() < deadline, f"{expression} never became true"
            time.sleep(0.05)

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file in a file input of the page, as a person does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def press(self, key: str) -> None:
        """Press a key, named as in JavaScript's `KeyboardEvent.key`."""
        codes = {"Tab": 9, "Enter": 13, "PageUp": 33, "PageDown": 34}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        codes |= {digit: ord(digit) for digit in "0123456789"}
        text = {"text": "\r"} if key == "Enter" else {}
        named = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **named, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def close(self) -> None:
        """End Chromium."""
        self._socket.close()
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()
