"""The site tests need a rendered book and Chromium; without either they end at once and say how to get it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

import browsing  # noqa: E402
import checks  # noqa: E402

from implicitreg.reproduce.project import UsageError  # noqa: E402

SITE = Path(os.environ.get("SITE", ROOT / "_build" / "html")).resolve()


def pytest_sessionstart(session: pytest.Session) -> None:
    try:
        browsing.browser()
    except UsageError as missing:
        raise pytest.UsageError(str(missing)) from None
    if not (SITE / "index.html").is_file():
        raise pytest.UsageError(f"no rendered book in {SITE}: make book, or implicitreg render")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def site() -> Path:
    return SITE


@pytest.fixture(scope="session")
def wanted() -> list[str]:
    """Return the pages of the contents, in order."""
    return checks.contents(ROOT / "_toc.yml")


@pytest.fixture(scope="session")
def home() -> Iterator[str]:
    """Return the address of the site on a server of its own."""
    with browsing.served(SITE) as address:
        yield address


@pytest.fixture(scope="session")
def started() -> Iterator[Any]:
    with browsing.chromium() as browser:
        yield browser


@pytest.fixture
def visit(started: Any, home: str) -> Iterator[Callable[..., Any]]:
    """Return what opens a page of the site, by its name or its whole address, for a new visitor."""
    visitors = []

    def open_page(name: str = "", alter: Any = None, **given: Any) -> Any:
        visitor = browsing.context(started, **given)
        visitors.append(visitor)
        return browsing.opened(visitor, name if "://" in name else home + name, alter)

    yield open_page
    for visitor in visitors:
        visitor.close()


@pytest.fixture(scope="session")
def tracked() -> set[str]:
    """Return the files of the repository, those to be committed too."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.splitlines())
