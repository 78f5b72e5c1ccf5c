"""A person before a browser: a Jupyter server on loopback, and one notebook page in headless Chromium.

Owns the server process and what a page is asked. A page is used through what a person sees (cells,
prompts, the toolbar) rather than through the application's own objects. Every wait has a deadline.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import nbformat
from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page

FrontEnd = Literal["lab", "notebook"]

CHROMIUM = shutil.which("chromium") or "chromium"
CHROMIUM_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]

# Where each application shows a notebook, and settings that keep other people's news out of the page.
_PATHS: dict[FrontEnd, str] = {"lab": "lab/tree", "notebook": "notebooks"}
_SETTINGS: dict[str, dict[str, Any]] = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
    # Cells out of sight keep their place in the page, where a test can read them.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
_OPTIONS = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
_POLL_S = 0.05
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0


def eventually(look: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """The first true value of `look()`; AssertionError when there was none within `timeout_s`."""
    pause, deadline = threading.Event(), time.monotonic() + timeout_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        pause.wait(_POLL_S)
    return found


def write_notebook(path: Path, sources: Sequence[str]) -> None:
    """A notebook of code cells, not yet run."""
    cells = [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


class JupyterServer:
    """JupyterLab (and Notebook 7, where it is installed) for one folder, with settings of its own."""

    def __init__(self, folder: Path, theme: str = "JupyterLab Light") -> None:
        self.root = folder / "root"
        self.root.mkdir(parents=True)
        self._folder, self._token = folder, secrets.token_hex()
        for plugin, values in {
            **_SETTINGS,
            "@jupyterlab/apputils-extension/themes": {"theme": theme, "adaptive-theme": False},
        }.items():
            file = folder / "settings" / f"{plugin}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))

    def __enter__(self) -> Self:
        with (self._folder / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *_OPTIONS],
                cwd=self.root,
                env=self._environ(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._url = str(eventually(self._listening, _START_TIMEOUT_S, "a Jupyter server that answers"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the server: it shuts its notebook kernels down, and they their ranks."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            raise AssertionError(f"the server did not end: {self.log}") from None

    def _environ(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY_"))}
        ours = {"CONFIG": "config", "DATA": "share", "RUNTIME": "runtime"}
        folders = {f"JUPYTER_{name}_DIR": str(self._folder / at) for name, at in ours.items()}
        return {
            **inherited,
            **folders,
            "JUPYTERLAB_SETTINGS_DIR": str(self._folder / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(self._folder / "workspaces"),
            "IPYTHONDIR": str(self._folder / "ipython"),
            "JUPYTER_TOKEN": self._token,
        }

    def _listening(self) -> str:
        """The address that the server wrote down once it had bound it; "" so far."""
        assert self._process.poll() is None, f"the server ended: {self.log}"
        for file in (self._folder / "runtime").glob("jpserver-*.json"):
            try:
                return str(json.loads(file.read_text())["url"])
            except ValueError:
                pass  # half written
        return ""

    @property
    def log(self) -> str:
        return (self._folder / "server.log").read_text(errors="replace")[-4000:]

    def address(self, front_end: FrontEnd, name: str) -> str:
        """Where a browser finds the notebook `name`, with no other document open beside it."""
        return f"{self._url}{_PATHS[front_end]}/{name}?reset&token={self._token}"

    def end_kernels(self) -> None:
        """Shut down every notebook kernel, as from the list of running kernels."""
        for kernel in self._ask("GET", "api/kernels"):
            self._ask("DELETE", f"api/kernels/{kernel['id']}")

    def _ask(self, method: str, path: str) -> Any:
        headers = {"Authorization": f"token {self._token}"}
        request = urllib.request.Request(self._url + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=_STOP_TIMEOUT_S) as reply:
            return json.loads(reply.read() or b"null")


class NotebookPage:
    """One notebook, open in a browser."""

    def __init__(
        self, browser: BrowserContext, server: JupyterServer, front_end: FrontEnd, name: str
    ) -> None:
        self._file = server.root / name
        self.errors: list[str] = []
        """What the page wrote to the browser's console as an error, and exceptions nobody caught."""
        self.page: Page = browser.new_page()
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        self.page.goto(server.address(front_end, name))
        self.ready()

    def ready(self) -> None:
        """Wait until the notebook is there, and its kernel idle."""
        self.page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
        self.page.locator(".jp-NotebookPanel-toolbar").get_by_text("Python 3").first.wait_for(timeout=60_000)
        self.page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first.wait_for(timeout=60_000)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")

    # -- what a person does ----------------------------------------------------------------------

    def start(self, i: int) -> None:
        """Run cell `i`, and do not wait."""
        cell = self.cell(i)
        cell.locator(".jp-Editor .cm-content").click(position={"x": 5, "y": 5})
        self.page.keyboard.press("Control+Enter")

    def wait(self, i: int, timeout_s: float = 30.0) -> None:
        """Until cell `i` has ended."""
        self.page.wait_for_timeout(0)  # let the page's events in
        eventually(lambda: self._ended(i), timeout_s, f"the end of cell {i}; it shows: {self.text(i)}")

    def run(self, i: int, timeout_s: float = 30.0) -> None:
        """Run cell `i` to its end."""
        before = self.prompt(i)
        self.start(i)
        eventually(lambda: self.prompt(i) != before, timeout_s, f"cell {i} to begin")
        self.wait(i, timeout_s)

    def interrupt(self) -> None:
        """Press the toolbar's square."""
        self.page.locator('.jp-NotebookPanel-toolbar [data-jp-item-name="interrupt"]').first.click()

    def theme(self, name: str) -> None:
        """Choose a theme from the settings menu."""
        self.page.locator(".lm-MenuBar-item", has_text="Settings").click()
        item = self.page.locator(".lm-Menu-item")
        item.filter(has_text=re.compile(r"^Theme\s*$")).hover()
        item.filter(has_text=re.compile(rf"^{name}\s*$")).click()
        is_light = str("Light" in name).lower()
        self.page.locator(f"body[data-jp-theme-light={is_light}]").wait_for(state="attached", timeout=10_000)

    def save(self) -> nbformat.NotebookNode:
        """Save with the keyboard; give the file."""
        before = self._file.stat().st_mtime_ns
        self.page.keyboard.press("Control+s")
        eventually(lambda: self._file.stat().st_mtime_ns > before, 10.0, "the saved file")
        self.page.wait_for_timeout(100)
        return nbformat.read(self._file, as_version=4)

    def close(self) -> None:
        self.page.close(run_before_unload=False)

    # -- what a person sees ----------------------------------------------------------------------

    def cell(self, i: int) -> Locator:
        return self.page.locator(".jp-Notebook .jp-Cell").nth(i)

    def prompt(self, i: int) -> str:
        """Left of the cell: "[ ]:" before it is run, "[*]:" while it runs or waits, then "[3]:"."""
        return self.cell(i).locator(".jp-InputPrompt").inner_text().strip()

    def _ended(self, i: int) -> bool:
        return re.fullmatch(r"\[\d+\]:", self.prompt(i)) is not None

    def runs(self, i: int) -> bool:
        return self.prompt(i) == "[*]:"

    def output(self, i: int) -> Locator:
        return self.cell(i).locator(".jp-Cell-outputArea")

    def text(self, i: int) -> str:
        """What cell `i` shows below its source."""
        area = self.output(i)
        return area.inner_text().strip() if area.count() else ""

    def see(self, i: int, text: str, timeout_s: float = 30.0) -> None:
        """Wait until `text` stands in cell `i`'s output."""
        self.output(i).get_by_text(text).first.wait_for(state="visible", timeout=timeout_s * 1000)
