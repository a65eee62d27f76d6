"""A tiny project: one library module, one chapter, notebooks that take a second."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CLAIMS = """\
paper: toy2026
claims:
  {key}:
    number: {number}
    statement: "The answer is at least forty."
    locator: null
    source: derived
    kind: bound
    published: {{value: null, unit: null, from: null}}
    measure: "the answer"
    scales: [smoke, book, paper]
    seeds: 2
    accept: {{rule: at_least, value: 40.0, of: min, reason: "a toy"}}
    direction: null
    control: {{what: "the answer's negative"}}
    expected: reproduced
"""

PARAMETERS = 'scale = "book"\nseed = 0\ndevice = "auto"\ndepth = 3'

RECORD = """\
from IPython.display import display
import toylib
answer = toylib.ANSWER + seed
evidence = {{"id": "{id}", "scale": scale, "samples": [float(answer)] * 2, "control": [-float(answer)] * 2}}
display(
    {{"text/html": "<table></table>", "text/plain": str(answer)}},
    raw=True,
    metadata={{"application/vnd.implicitreg.claim+json": evidence}},
)
"""


def cell(kind: str, source: str, number: int, tags: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a cell as plain JSON data."""
    metadata = {"tags": list(tags)} if tags else {}
    found = {"cell_type": kind, "id": f"cell-{number}", "metadata": metadata, "source": source}
    return found | ({"execution_count": None, "outputs": []} if kind == "code" else {})


class Toy:
    """A project in a folder of its own, and the command line in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if root.exists():
            return
        for name, text in {
            "_config.yml": "title: Toy\n",
            "_toc.yml": "format: jb-book\nroot: book/index\n",
            "constraints.txt": "pyyaml==6.0\n",
            "README.md": "A toy.\n",
            "lib/toylib.py": "ANSWER = 42\n",
            "book/index.md": "# Toy\n",
        }.items():
            self.write(name, text)
        self.claims("toy", "big", "C01")

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    def claims(self, chapter: str, key: str, number: str) -> None:
        self.write(f"book/{chapter}/claims.yml", CLAIMS.format(key=key, number=number))

    def notebook(self, name: str, *sources: str, records: str | None = None, parameters: str = PARAMETERS) -> Path:
        """Write a notebook: a title, the parameters, the given cells, and one that records a claim."""
        code = [*sources, *([RECORD.format(id=records)] if records else [])]
        cells = [cell("markdown", f"# {name}", 0), cell("code", parameters, 1, ("parameters",))]
        cells += [cell("code", source, number) for number, source in enumerate(code, 2)]
        content = {
            "cells": cells,
            "metadata": {"language_info": {"name": "python"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        return self.write(f"book/{name}.ipynb", json.dumps(content))

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command line as a user does, in a process of its own."""
        command = [sys.executable, "-m", "implicitreg.reproduce.cli", *arguments]
        settings = {"cwd": self.root, "capture_output": True, "text": True, "timeout": 60} | options
        return subprocess.run(command, check=False, **settings)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start the command line, in a process group of its own."""
        command = [sys.executable, "-m", "implicitreg.reproduce.cli", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=self.root, text=True, start_new_session=True, **pipes)

    def executed(self, name: str, run: str = "book-seed0") -> Path:
        return self.root / "_build" / "runs" / run / f"{name}.ipynb"


@pytest.fixture(scope="session")
def toy_at() -> type[Toy]:
    """Return what makes a project in a given folder, or takes it up again."""
    return Toy


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """Return a project with no notebook yet."""
    return Toy(tmp_path / "project")


@pytest.fixture
def inside(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """Return the project, with this process in its folder."""
    monkeypatch.chdir(toy.root)
    return toy
