"""A real JupyterLab and a real Chromium: open a notebook, run cells, click, read what is on the page."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.kit.ports import held_port

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

#: Seconds that anything on a page may take before a test gives up. Not a measure of speed: machines are shared.
PATIENCE_S = 300

_SETTINGS = {
    # Cells outside the window would otherwise not be in the page at all.
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin.jupyterlab-settings": {"autosave": False},
}
_THEME = "@jupyterlab/apputils-extension/themes.jupyterlab-settings"

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: install the system package chromium")


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab.

    Attributes:
        url: without a slash at the end; folder: its root folder.
    """

    url: str
    folder: Path


@contextlib.contextmanager
def running_lab(folder: Path, python: str = sys.executable, dark: bool = False, **environment: str) -> Iterator[Lab]:
    """A JupyterLab of the environment that `python` belongs to, on a free port of this machine, ended afterwards."""
    settings = folder / ".settings"
    for name, values in {**_SETTINGS, **({_THEME: {"theme": "JupyterLab Dark"}} if dark else {})}.items():
        (settings / name).parent.mkdir(parents=True, exist_ok=True)
        (settings / name).write_text(json.dumps(values))
    with held_port() as port, _server(port, folder, python, settings, environment):
        yield Lab(f"http://127.0.0.1:{port}", folder)


@contextlib.contextmanager
def _server(port: int, folder: Path, python: str, settings: Path, environment: dict[str, str]) -> Iterator[None]:
    command = [
        python, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0", "--ServerApp.token=", "--ServerApp.password=",
        "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True",
        "--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    version = "from importlib.metadata import version; print(version('jupyterlab'))"  # its own --version starts all of it
    if subprocess.run([python, "-c", version], capture_output=True, text=True).stdout.startswith("3."):
        command = command[:-2]  # JupyterLab 3 asks nobody for news
    kept = {
        name: value for name, value in os.environ.items() if name not in ("PYTEST_CURRENT_TEST", "CI", "TRAINBOOK_UI")
    }
    kept |= {"JUPYTERLAB_SETTINGS_DIR": str(settings), "JUPYTER_RUNTIME_DIR": str(folder / ".runtime"), **environment}
    kept["PATH"] = f"{Path(python).parent}{os.pathsep}{kept.get('PATH', '')}"
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=kept, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        _until_it_answers(f"http://127.0.0.1:{port}", server, folder / "lab.log")
        yield
    finally:
        _end_kernels(f"http://127.0.0.1:{port}")
        server.terminate()
        try:
            server.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
            raise


def _direct() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _until_it_answers(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        with contextlib.suppress(OSError, urllib.error.URLError):
            _direct().open(f"{url}/api", timeout=30).read()
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}", pytrace=False)


def _end_kernels(url: str) -> None:
    with contextlib.suppress(OSError):
        for kernel in json.load(_direct().open(f"{url}/api/kernels", timeout=60)):
            request = urllib.request.Request(f"{url}/api/kernels/{kernel['id']}", method="DELETE")
            _direct().open(request, timeout=60).read()


@contextlib.contextmanager
def running_browser() -> Iterator[Any]:
    """Chromium without a window. Yields a Playwright Browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE_S * 1000
        )
        try:
            yield browser
        finally:
            browser.close()


class NotebookPage:
    """A notebook that is open in the browser. Cells are counted from 0, code and Markdown alike."""

    def __init__(self, browser: Any, lab: Lab, name: str, width: int = 1000, height: int = 1400) -> None:
        self.lab, self.name = lab, name
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(PATIENCE_S * 1000)
        self.open()

    def open(self) -> None:
        """Open or load the page again; the kernel goes on."""
        self.page.goto(f"{self.lab.url}/lab/tree/{self.name}?reset")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.page.wait_for_function(
            "() => window.jupyterapp && window.jupyterapp.shell.currentWidget?.context?.isReady"
        )
        # Not its status: a kernel that runs a cell does not say it again to a page that was loaded anew.
        self.page.wait_for_function(
            "() => window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.connectionStatus == 'connected'"
        )

    def replace_cells(self, *cells: str) -> None:
        """Show a notebook of other cells, without outputs, in the same page and with the same kernel: to load the page, and to
        import the library again, takes longer than most of what is tested. A kernel that still works is restarted."""
        if self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status") != "idle":
            self.restart_kernel()
        write_notebook(self.lab.folder / self.name, *cells)
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.revert()")
        self.page.wait_for_function(
            "sources => { const cells = window.jupyterapp.shell.currentWidget.content.widgets;"
            " return cells.length == sources.length"
            " && sources.every((source, at) => cells[at].model.sharedModel.source == source)"
            " && !document.querySelector('.jp-Notebook .jp-OutputArea-output') }",
            arg=list(cells),
        )

    def close(self) -> None:
        self.page.close()

    def command(self, name: str, **arguments: Any) -> None:
        """Start one of JupyterLab's commands; does not wait for what it starts."""
        self.page.evaluate("([name, args]) => { window.jupyterapp.commands.execute(name, args) }", [name, arguments])

    def run_all(self) -> None:
        self.command("notebook:run-all-cells")

    def run_cell(self, index: int) -> None:
        """Start one cell."""
        self.page.evaluate("index => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = index }", index)
        self.command("notebook:run-cell")

    def restart_kernel(self) -> None:
        """Restart the kernel, and wait until it has restarted."""
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")

    def change_theme(self, theme: str) -> None:
        """Change the whole page to JupyterLab's theme "Light" or "Dark", and wait until it has changed."""
        self.command("apputils:change-theme", theme=f"JupyterLab {theme}")
        self.page.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {theme}']", state="attached")

    def cell(self, index: int) -> Any:
        """The cell's element."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index)

    def output(self, index: int) -> str:
        """The text of the cell's output."""
        area = self.cell(index).locator(".jp-Cell-outputWrapper")
        return str(area.inner_text()) if area.count() else ""

    def prompt(self, index: int) -> str:
        """ "[*]:" while the cell runs or waits, "[3]:" afterwards."""
        return str(self.cell(index).locator(".jp-InputArea-prompt").inner_text())

    def wait_until_done(self, index: int) -> None:
        """Until the cell has run, well or with an error."""
        self.page.wait_for_function(
            "index => /\\[\\d+\\]/.test(document.querySelectorAll('.jp-Notebook .jp-Cell')[index]"
            ".querySelector('.jp-InputArea-prompt').innerText)",
            arg=index,
        )

    def is_running(self, index: int) -> bool:
        return "*" in self.prompt(index)

    def wait_for_text(self, selector: str, text: str) -> None:
        self.page.locator(selector, has_text=text).first.wait_for(state="attached")

    def click(self, selector: str) -> None:
        """Click the first element that fits, once it is there and enabled."""
        self.page.locator(selector).first.click()

    def save(self) -> None:
        """Save the notebook, outputs and all, and wait until it is on disk."""
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.save()")

    def alerts(self) -> list[str]:
        """Errors that handlers of widgets raised."""
        return [text for text in self.page.locator(".jp-OutputArea [role=alert]").all_inner_texts() if text.strip()]


def write_notebook(path: Path, *cells: str) -> None:
    """A notebook of code cells."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
