"""What a user sees while notebooks run: a live bar for each, or one line when each has finished."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress


def duration(seconds: float) -> str:
    """Return a duration with one unit.

    Examples
    --------
    >>> [duration(s) for s in (0.4, 14.2, 59.7, 200.0, 5400.0, 600_000.0)]
    ['1 s', '14 s', '1 min', '3 min', '1.5 h', '170 h']
    """
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    if seconds < 3570:
        return f"{round(seconds / 60)} min"
    return f"{float(f'{seconds / 3600:.2g}'):,g} h"


class Forecast:
    """How long a run will still take, by what its notebooks took in the past.

    Parameters
    ----------
    expected
        Seconds of each notebook that is to be executed, ``None`` where nothing is known.
    workers
        How many run at a time.
    clock
        Never goes back, whatever happens to the time of day.

    Examples
    --------
    >>> forecast = Forecast({"a/one": 60.0, "a/two": 20.0}, workers=2, clock=lambda: 0.0)
    >>> forecast.left()
    60.0
    >>> forecast.finish("a/one", 30.0)  # this machine is twice as fast
    >>> forecast.left()
    10.0
    """

    def __init__(
        self, expected: Mapping[str, float | None], workers: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._left = dict(expected)
        self._workers, self._clock = workers, clock
        self._begun: dict[str, float] = {}
        self._was_expected = self._taken = 0.0

    def begin(self, name: str) -> None:
        """Note that a notebook has begun."""
        self._begun.setdefault(name, self._clock())

    def finish(self, name: str, seconds: float) -> None:
        """Note what a notebook has taken."""
        expected = self._left.pop(name, None)
        if expected and seconds:
            self._was_expected += expected
            self._taken += seconds

    def left(self) -> float | None:
        """Return the seconds that are left; ``None`` where nothing is known of a notebook."""
        speed = self._taken / self._was_expected if self._was_expected else 1.0
        rest = []
        for name, expected in self._left.items():
            if expected is None:
                return None
            begun = self._begun.get(name)
            rest.append(max(0.0, expected * speed - (0.0 if begun is None else self._clock() - begun)))
        return max([sum(rest) / self._workers, *rest], default=0.0)


class Display(Protocol):
    """Takes what is known of the notebooks that run."""

    def advance(self, name: str, part: int, parts: int, what: str = "cell") -> None:
        """Show which cell a notebook has come to, or how many cells of work its sweep has done."""

    def finish(self, name: str, result: str, left: float | None = None) -> None:
        """Show that a notebook has finished, and how, and how many seconds the others will still take."""

    def say(self, line: str) -> None:
        """Show a line of its own."""


class _Lines:
    """One line for each finished notebook: for files, pipes and continuous integration."""

    def __init__(self, names: Sequence[str]) -> None:
        self._width = max(map(len, names), default=0)

    def advance(self, name: str, part: int, parts: int, what: str = "cell") -> None:
        pass

    def finish(self, name: str, result: str, left: float | None = None) -> None:
        ending = f"; about {duration(left)} left" if left else ""
        self.say(f"{name:<{self._width}}  {result}{ending}")

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class _Bars:
    """One live bar for each notebook; its clock starts with its first cell."""

    def __init__(self, progress: "Progress", names: Sequence[str]) -> None:
        self._progress = progress
        self._tasks = {name: progress.add_task(name, total=1, start=False, state="waiting") for name in names}
        self._all = progress.add_task("all", total=len(names), state="")

    def advance(self, name: str, part: int, parts: int, what: str = "cell") -> None:
        self._progress.start_task(self._tasks[name])
        self._progress.update(self._tasks[name], completed=part - 1, total=parts, state=f"{what} {part} of {parts}")

    def finish(self, name: str, result: str, left: float | None = None) -> None:
        self._progress.update(self._tasks[name], completed=1, total=1, state=result)
        self._progress.stop_task(self._tasks[name])
        self._progress.update(self._all, advance=1, state=f"about {duration(left)} left" if left else "")

    def say(self, line: str) -> None:
        self._progress.console.print(line, highlight=False)


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
