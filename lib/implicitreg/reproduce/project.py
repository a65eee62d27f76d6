"""Where the book is, and what a user's words mean there."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

# The same as `implicitreg.claims.SCALES`, which takes a second to import.
SCALES = ("smoke", "book", "paper")


class CommandError(Exception):
    """What went wrong, in one line for the user; ``code`` becomes the exit status."""

    code = 1


class UsageError(CommandError):
    """The command itself cannot be carried out: nothing was run."""

    code = 2


def shown(path: Path) -> str:
    """Return a path as a user reads it: relative to the working directory where it lies below."""
    try:
        return os.fspath(path.relative_to(Path.cwd()))
    except ValueError:
        return os.fspath(path)


def listed(names: Iterable[str]) -> str:
    """Return names as a list in a sentence."""
    return ", ".join(names) or "none"


def parse_notebook(text: str) -> dict[str, Any] | None:
    """Return a notebook as plain JSON data; ``None`` where the text is no notebook."""
    try:
        notebook = json.loads(text)
    except ValueError:
        return None
    if not isinstance(notebook, dict) or not isinstance(notebook.get("metadata"), dict):
        return None
    cells = notebook.get("cells")
    if not isinstance(cells, list) or not all(isinstance(c, dict) and "cell_type" in c for c in cells):
        return None
    return notebook


def read_notebook(path: Path) -> dict[str, Any] | None:
    """Return a notebook file as plain JSON data; ``None`` where there is none, or none that can be read."""
    try:
        return parse_notebook(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


@dataclass(frozen=True)
class Notebook:
    """A notebook of the book.

    Attributes
    ----------
    name
        Its short name, such as ``rank/flow``.
    path
        The file.
    """

    name: str
    path: Path

    @property
    def chapter(self) -> str:
        """The folder that it is in, such as ``rank``."""
        return self.path.parent.name

    @property
    def claims(self) -> Path:
        """The claims of its chapter."""
        return self.path.parent / "claims.yml"

    def read(self) -> dict[str, Any]:
        """Return the notebook as plain JSON data.

        Raises
        ------
        CommandError
            The file is no notebook.
        """
        notebook = read_notebook(self.path)
        if notebook is None:
            raise CommandError(f"{shown(self.path)} is not a notebook that can be read")
        return notebook


@dataclass(frozen=True)
class Project:
    """The folder that holds ``_config.yml``, ``_toc.yml`` and ``book/``.

    Examples
    --------
    >>> "rank" in Project.find(Path.cwd()).chapters
    True
    """

    root: Path

    @classmethod
    def find(cls, start: Path) -> "Project":
        """Look for the project upward from a folder.

        Raises
        ------
        UsageError
            No folder upward is a project.
        """
        start = start.resolve()
        for folder in (start, *start.parents):
            if all((folder / name).is_file() for name in ("_config.yml", "_toc.yml")) and (folder / "book").is_dir():
                return cls(folder)
        raise UsageError(f"no project here: {start} is not in a folder with _config.yml, _toc.yml and book/")

    @property
    def book(self) -> Path:
        """The narrative."""
        return self.root / "book"

    @property
    def build(self) -> Path:
        """Everything that can be made again."""
        return self.root / "_build"

    @property
    def runs(self) -> Path:
        """Where runs are kept."""
        return self.build / "runs"

    @property
    def evidence(self) -> Path:
        """The ``claims.json`` of the recorded notebooks."""
        return self.root / "evidence" / "book" / "claims.json"

    def larger_evidence(self, scale: str, chapter: str) -> Path:
        """Return the ``claims.json`` of a chapter's run larger than the recorded one."""
        return self.root / "evidence" / scale / chapter / "claims.json"

    @property
    def constraints(self) -> Path:
        """The versions that the environment is installed with."""
        return self.root / "constraints.txt"

    @cached_property
    def chapters(self) -> dict[str, tuple[Notebook, ...]]:
        """The chapters, folders of the book with claims, and their notebooks."""
        folders = sorted(path.parent for path in self.book.glob("*/claims.yml"))
        return {
            folder.name: tuple(
                Notebook(f"{folder.name}/{path.stem}", path)
                for path in sorted(folder.glob("*.ipynb"))
                if not path.name.startswith(".")
            )
            for folder in folders
        }

    @cached_property
    def notebooks(self) -> dict[str, Notebook]:
        """Every notebook by its short name."""
        return {notebook.name: notebook for chapter in self.chapters.values() for notebook in chapter}

    def resolve(self, targets: Sequence[str]) -> list[Notebook]:
        """Return the notebooks that a command line names.

        Parameters
        ----------
        targets
            Chapters (``rank``), notebooks (``rank/flow``) or paths (``book/rank/flow.ipynb``); none for all.

        Raises
        ------
        UsageError
            One of them is unknown, or there is nothing to run.
        """
        found: dict[str, Notebook] = {}
        for target in targets or (os.fspath(self.book),):
            name = self._name(target)
            if name in self.notebooks:
                found[name] = self.notebooks[name]
            elif name in self.chapters or name == ".":
                chosen = self.notebooks.values() if name == "." else self.chapters[name]
                found.update((notebook.name, notebook) for notebook in chosen)
            else:
                raise UsageError(
                    f"unknown chapter or notebook {target!r}; chapters: {listed(self.chapters)}; "
                    f"notebooks: {listed(self.notebooks)}"
                )
        if not found:
            raise UsageError(f"there is no notebook in {listed(targets) if targets else shown(self.book)}")
        return list(found.values())

    def _name(self, target: str) -> str:
        """Return a short name: of the path, where the target is one in the book, else of the word itself."""
        path = Path(target).resolve()
        if path.exists() and path.is_relative_to(self.book):
            return path.relative_to(self.book).as_posix().removesuffix(".ipynb")
        return target.strip("/").removeprefix("book/").removesuffix(".ipynb")
