"""The site in a browser: a server on this machine, Chromium, and a note of what a page does."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from implicitreg.reproduce.printing import browser
from implicitreg.reproduce.project import UsageError

# No name but this machine's is resolved: whatever a page asks for, nothing leaves.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

PATIENCE = 60_000  # milliseconds; a page of the library takes three seconds on a busy machine

READY = """async () => {
  await (window.MathJax?.startup?.promise ?? null);
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map((image) => image.decode().catch(() => 0)));
}"""


class _Quiet(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, *_: Any) -> None:
        pass

    def copyfile(self, *files: Any) -> None:
        with suppress(ConnectionError):  # a page that is left in the middle
            super().copyfile(*files)


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve a folder on the loopback interface; give its address, which ends with a slash."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site))) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def chromium() -> Iterator[Any]:
    """Start Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser(), args=list(FLAGS))
        try:
            yield started
        finally:
            started.close()


def context(started: Any, *, theme: str = "light", width: int = 1280, height: int = 900, scripts: bool = True) -> Any:
    """Return a visitor who has never been on the site, and whose system asks for this theme."""
    visitor = started.new_context(
        color_scheme=theme,
        reduced_motion="reduce",
        viewport={"width": width, "height": height},
        java_script_enabled=scripts,
    )
    visitor.set_default_timeout(PATIENCE)
    return visitor


class Watch:
    """What a page does: the addresses that it asks for, and what goes wrong."""

    def __init__(self, page: Any):
        self.addresses: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.addresses.append(request.url))
        page.on("websocket", lambda socket: self.addresses.append(socket.url))
        page.on("requestfailed", self._missed)
        page.on(
            "response", lambda answer: answer.status >= 400 and self.errors.append(f"{answer.status}: {answer.url}")
        )
        page.on("console", lambda said: said.type == "error" and self.errors.append(f"console: {said.text}"))
        page.on("pageerror", lambda error: self.errors.append(f"script: {error}"))

    def _missed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # not one that the next page cut short
            self.errors.append(f"not loaded: {request.url} ({request.failure})")


def opened(visitor: Any, address: str, alter: Any = None) -> tuple[Any, Watch]:
    """Open a page and wait until its mathematics is typeset and its pictures are there.

    ``alter`` is told the page before it goes anywhere, so that it can change what arrives.
    """
    page = visitor.new_page()
    watch = Watch(page)
    if alter is not None:
        alter(page)
    page.goto(address)
    page.evaluate(READY)
    return page, watch


def unfold(page: Any) -> None:
    """Open what a reader can open: hidden code, and solutions of exercises."""
    page.evaluate("""() => {
      for (const one of document.querySelectorAll("details")) one.open = true;
      for (const one of document.querySelectorAll(".toggle-hidden")) one.classList.remove("toggle-hidden");
    }""")


def in_theme(page: Any, theme: str) -> None:
    """Let the system ask for the other theme, as it does in the evening, and wait until the page follows."""
    page.emulate_media(color_scheme=theme)
    page.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=theme)
    page.evaluate("document.getAnimations().forEach((one) => one.finish())")


if __name__ == "__main__":
    try:
        print(browser())
    except UsageError as missing:
        raise SystemExit(str(missing)) from None
