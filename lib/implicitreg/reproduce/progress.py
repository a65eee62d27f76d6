"""What a user sees while notebooks run: a live bar for each, or one line when each has finished."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress


class Display(Protocol):
    """Takes what is known of the notebooks that run."""

    def advance(self, name: str, cell: int, cells: int) -> None:
        """Show which cell a notebook has come to."""

    def finish(self, name: str, result: str) -> None:
        """Show that a notebook has finished, and how."""


class _Lines:
    """One line for each finished notebook: for files, pipes and continuous integration."""

    def __init__(self, names: Sequence[str]) -> None:
        self._width = max(map(len, names), default=0)

    def advance(self, name: str, cell: int, cells: int) -> None:
        pass

    def finish(self, name: str, result: str) -> None:
        print(f"{name:<{self._width}}  {result}", file=sys.stderr, flush=True)


class _Bars:
    """One live bar for each notebook; its clock starts with its first cell."""

    def __init__(self, progress: "Progress", names: Sequence[str]) -> None:
        self._progress = progress
        self._tasks = {name: progress.add_task(name, total=1, start=False, state="waiting") for name in names}

    def advance(self, name: str, cell: int, cells: int) -> None:
        self._progress.start_task(self._tasks[name])
        self._progress.update(self._tasks[name], completed=cell - 1, total=cells, state=f"cell {cell} of {cells}")

    def finish(self, name: str, result: str) -> None:
        self._progress.update(self._tasks[name], completed=1, total=1, state=result)
        self._progress.stop_task(self._tasks[name])


@contextmanager
def display(names: Sequence[str]) -> Iterator[Display]:
    """Show the progress of notebooks on the standard error stream."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(names)
        return
    text, bar, state = TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[state]}")
    with Progress(text, bar, state, TimeElapsedColumn(), console=console) as progress:
        yield _Bars(progress, names)
