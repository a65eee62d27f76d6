"""Reuse, execute in parallel, store, judge."""

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from implicitreg.reproduce.environment import cpu, describe, kernel_variables, memory, processors
from implicitreg.reproduce.execution import TOKEN, Job, Outcome, execute, start_worker
from implicitreg.reproduce.fingerprint import (
    PINNED,
    library_code,
    other_library,
    pinned,
    seal,
    sealed_cost,
)
from implicitreg.reproduce.planning import Plan, Step
from implicitreg.reproduce.progress import Display, Forecast, display, duration
from implicitreg.reproduce.project import (
    Notebook,
    UsageError,
    listed,
    parse_notebook,
    read_notebook,
    shown,
)
from implicitreg.reproduce.runs import CLAIMS, Judged, claims_json, executed, failed, judge
from implicitreg.reproduce.storage import locked, make_writable, tidy, to_json, write, writing_to
from implicitreg.reproduce.sweeps import (
    SPREAD,
    SUFFIX,
    SURROUNDINGS,
    USED,
    Cell,
    Computed,
    compute,
    forget_unused,
    read_cell,
    set_aside_damaged,
    write_cell,
)
from implicitreg.reproduce.work import Crew, dask, is_lost, processes

CELL_TIMEOUT, PAPER_CELL_TIMEOUT = 600, 6 * 3600
TOO_LONG = 3  # a notebook may take so many times what its chapter declares
_TICK = 0.2  # seconds between two looks at the progress files
_ROUNDS = 100  # so many sweeps no notebook has: it asks for something else each time


@dataclass(frozen=True)
class Result:
    """What became of a notebook: ``message`` says what is wrong, if anything is."""

    notebook: Notebook
    state: Literal["executed", "reused", "failed", "unfinished"]
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class Report:
    """What a run came to."""

    folder: Path
    results: Sequence[Result]
    judged: Sequence[Judged]

    @property
    def complaints(self) -> list[str]:
        """One line for each notebook that failed, and one for all that did not finish."""
        lines = [result.message for result in self.results if result.message and result.state != "unfinished"]
        unfinished = [result for result in self.results if result.state == "unfinished"]
        for message in dict.fromkeys(result.message for result in unfinished):
            names = [result.notebook.name for result in unfinished if result.message == message]
            lines.append(f"{message}; not finished: {listed(names)}; the same command again takes up from here")
        return lines


# ---------------------------------------------------------------------------------------------------------------------
# Carrying out


def reproduce(
    plan: Plan,
    *,
    workers: int | None = None,
    cell_timeout: int | None = None,
    executor: Executor | None = None,
    scheduler: str | None = None,
    timed: bool = False,
    variables: Mapping[str, str] | None = None,
) -> Report:
    """Carry out a plan: execute what has to be, store it, judge all claims by what is there.

    Parameters
    ----------
    plan
        The plan.
    workers
        How many notebooks, or cells of their sweeps, to run at a time; as many as there are processors by default.
    cell_timeout
        Seconds that a cell may take; 600 by default, 6 hours at scale ``paper``.
    executor
        Who runs them; processes on this machine by default.
    scheduler
        The address of a Dask scheduler, whose workers run them instead.
    timed
        Whether a notebook fails that takes more than `TOO_LONG` times what its chapter declares.
    variables
        Environment variables of the notebooks' processes, besides those that they always have.

    Returns
    -------
    Report
        A notebook that fails is told there; the others still finish.

    Raises
    ------
    CommandError
        The run's folder is in use or cannot be written to, the memory cannot suffice, no scheduler answers, or the
        evidence is not as it must be.
    """
    folder, settings = plan.folder, plan.settings
    surroundings = hashlib.sha256(json.dumps(plan.shared, sort_keys=True).encode()).hexdigest()
    variables = {
        **kernel_variables(plan.project),
        **(variables or {}),
        PINNED: " ".join(pinned(plan.project.constraints)),
        SURROUNDINGS: surroundings,
        SPREAD: "1" if settings.scale == "paper" else "",
    }
    library, processor = library_code(variables), cpu()
    with locked(folder):
        tidy(folder)
        for step in plan.steps:
            _clear_way(folder, step.notebook)
        jobs = [step for step in plan.steps if step.because]
        count = min(workers or processors(), len(jobs)) if settings.scale != "paper" else workers or processors()
        if jobs and executor is None and scheduler is None:
            _check_memory(jobs, count, spread=settings.scale == "paper")
        with display([step.notebook.name for step in plan.steps]) as show:
            results = [_reuse(step, show) for step in plan.steps if not step.because]
            if jobs:
                unfit = partial(other_library, library, variables)
                with _workers(executor, scheduler, count, folder, unfit) as (pool, many, processor):
                    run = _Execution(plan, pool, many, cell_timeout, show, variables, library)
                    results += run.carry_out(jobs)
        judged = judge(plan.project, plan.finished(), settings.scale)
        environment = describe(plan.project, settings.parameters) | {"cpu": processor}
        write(folder / CLAIMS, to_json(claims_json(environment, judged)))
    order = [step.notebook for step in plan.steps]
    if timed:
        results = [_timed(plan, result) for result in results]
    return Report(folder, sorted(results, key=lambda result: order.index(result.notebook)), judged)


def _clear_way(folder: Path, notebook: Notebook) -> None:
    """Make sure, before hours of work, that the results can be stored."""
    target = executed(folder, notebook.name)
    make_writable(target.parent)
    for path in (target, failed(folder, notebook.name), folder / CLAIMS):
        if path.is_dir():
            raise UsageError(f"cannot write to {shown(path)}: Is a directory")


def _check_memory(jobs: Sequence[Step], count: int, spread: bool) -> None:
    """Refuse what this machine can never hold; warn of what it cannot hold now."""
    told = memory()
    needs = sorted(((step.expected.get("memory", 0.0), step.notebook.name) for step in jobs), reverse=True)
    if told is None:
        return
    whole, free = told
    largest, name = needs[0]
    if largest > whole:
        raise UsageError(
            f"{name} needs about {largest:,.0f} MB of memory at this scale, this machine has {whole:,.0f}: "
            "a smaller --scale, or --dask with larger machines"
        )
    # Where sweeps are spread, all workers may be at cells of the largest notebook.
    together = count * largest if spread else sum(need for need, _ in needs[:count])
    if together > free:
        logging.getLogger("implicitreg").warning(
            "%d workers may need %s MB of memory together, %s are free: --workers 1 needs %s",
            count,
            f"{together:,.0f}",
            f"{free:,.0f}",
            f"{largest:,.0f}",
        )


def _timed(plan: Plan, result: Result) -> Result:
    """Say so where a notebook took far longer than its chapter declares."""
    step = next(step for step in plan.steps if step.notebook == result.notebook)
    if result.state not in ("executed", "reused") or step.declared is None:
        return result
    seconds = result.seconds or sealed_cost(read_notebook(executed(plan.folder, result.notebook.name))).get(
        "seconds", 0.0
    )
    if seconds <= TOO_LONG * step.declared:
        return result
    claims = shown(result.notebook.claims)
    message = (
        f"{result.notebook.name} took {seconds:.0f} s, more than {TOO_LONG} times the {step.declared:g} s of {claims}"
    )
    return replace(result, message=message)


def _reuse(step: Step, show: Display) -> Result:
    show.finish(step.notebook.name, "reused")
    return Result(step.notebook, "reused")


@contextmanager
def _workers(
    executor: Executor | None, scheduler: str | None, count: int, folder: Path, unfit: Callable[[], str | None]
) -> Iterator[tuple[Executor, int, str]]:
    """Give who does the work, how much at a time, and on what processors."""
    if executor is not None:
        yield executor, count, cpu()
        return
    if scheduler is not None:
        with dask(scheduler, unfit, cpu) as given:
            yield given
        return
    log = folder / "log.txt"
    with writing_to(log):
        log.write_bytes(b"")
    with processes(count, start_worker, os.fspath(log)) as pool:
        yield pool, count, cpu()


def _progress_file(folder: Path, notebook: Notebook) -> Path:
    target = executed(folder, notebook.name)
    return target.with_name(f".{target.stem}.progress.tmp")


def _stored(cells: Path) -> dict[str, bytes]:
    """Return the stored cells of a notebook, to be sent to where their folder cannot be seen."""
    found = {path.stem: read_cell(cells, path.stem) for path in cells.glob(f"*{SUFFIX}")}
    return {key: encoded for key, encoded in found.items() if encoded is not None}


def cells_of(folder: Path, notebook: Notebook) -> Path:
    """Return where the cells of a notebook's sweeps are stored in a run's folder."""
    return folder / ".cells" / notebook.name


@dataclass
class _Sweep:
    """What a notebook waits for, and what it has taken so far."""

    waiting: set[str] = field(default_factory=set)
    asked: int = 0
    rounds: int = 0
    seconds: float = 0.0
    memory: int | None = None
    elsewhere: bool = False
    error: str | None = None
    lost: bool = False
    resumed: bool = False

    def spend(self, seconds: float, memory: int | None) -> None:
        self.seconds += seconds
        self.memory = max(filter(None, (self.memory, memory)), default=None)


class _Execution:
    """The notebooks of a run on their way through the workers, with the cells of their sweeps.

    A notebook whose sweep is to be computed by other workers ends there, hands out the cells that are missing, and is
    executed again when they are stored: so no worker ever waits for another, and the run's own folder is the only
    place where anything is kept.
    """

    def __init__(
        self,
        plan: Plan,
        pool: Executor,
        many: int,
        cell_timeout: int | None,
        show: Display,
        variables: Mapping[str, str],
        library: str,
    ) -> None:
        self._plan, self._show = plan, show
        self._crew = Crew[tuple[Notebook, str | None]](pool)
        self._many = many
        paper = plan.settings.scale == "paper"
        self._cell_timeout = cell_timeout or (PAPER_CELL_TIMEOUT if paper else CELL_TIMEOUT)
        self._variables, self._library = variables, library
        self._steps: dict[Notebook, Step] = {}
        self._sweeps: dict[Notebook, _Sweep] = {}
        self._results: list[Result] = []

    def carry_out(self, steps: Sequence[Step]) -> list[Result]:
        """Execute notebooks, and store them."""
        # What runs long should not begin last; where nothing is known of a notebook, its code tells.
        known = all("seconds" in step.expected for step in steps)
        queue = sorted(steps, key=lambda step: step.expected["seconds"] if known else _code(step.content), reverse=True)
        self._forecast = Forecast({s.notebook.name: s.expected.get("seconds") for s in steps}, self._many)
        if left := self._forecast.left():
            self._show.say(f"about {duration(left)} for {len(steps)} notebook{'s' * (len(steps) > 1)}")
        for step in queue:
            self._steps[step.notebook], self._sweeps[step.notebook] = step, _Sweep()
            self._prepare_cells(step)
            self._start(step)
        import scipy.stats  # noqa: F401  # for the verdicts: takes most of a second, free while the notebooks run

        while self._crew:
            for (notebook, key), future in self._crew.done(_TICK):
                if key is None:
                    self._notebook_done(self._steps[notebook], future)
                else:
                    self._cell_done(self._steps[notebook], key, future)
            for notebook, key in self._crew.pending:
                if key is None:
                    self._show_progress(self._steps[notebook])
        return self._results

    def _cells(self, step: Step) -> Path:
        return cells_of(self._plan.folder, step.notebook)

    def _prepare_cells(self, step: Step) -> None:
        """Make a notebook's folder of cells fit for use: none that was asked to be computed anew, none damaged."""
        cells = self._cells(step)
        if self._plan.fresh:
            shutil.rmtree(cells, ignore_errors=True)
        cells.mkdir(parents=True, exist_ok=True)
        for name in set_aside_damaged(cells):
            self._show.say(f"{step.notebook.name}: the stored cell {name[:12]}… is damaged: it is computed again")
        (cells / USED).unlink(missing_ok=True)
        self._sweeps[step.notebook].resumed = any(cells.glob(f"*{SUFFIX}"))
        write(cells / TOKEN, secrets.token_hex())

    def _start(self, step: Step) -> None:
        cells, sweep = self._cells(step), self._sweeps[step.notebook]
        job = Job(
            name=step.notebook.name,
            source=json.dumps(step.content),
            folder=os.fspath(step.notebook.path.parent),
            parameters=step.inject,
            variables=self._variables,
            cell_timeout=self._cell_timeout,
            progress=os.fspath(_progress_file(self._plan.folder, step.notebook)),
            cells=os.fspath(cells),
            token=(cells / TOKEN).read_text("ascii"),
            shipped=_stored(cells) if sweep.elsewhere else {},
            library=self._library,
        )
        self._crew.submit((step.notebook, None), execute, job)

    def _notebook_done(self, step: Step, future: "Future[Outcome]") -> None:
        _progress_file(self._plan.folder, step.notebook).unlink(missing_ok=True)
        if is_lost(future):
            self._finish(Result(step.notebook, "unfinished", message=_loss(future)))
            return
        try:
            outcome = future.result()
        except Exception as error:
            first = next(iter(str(error).splitlines()), "")
            message = f"{step.notebook.name} failed: {type(error).__name__}: {first}"
            self._finish(Result(step.notebook, "failed", message=message))
            return
        sweep = self._sweeps[step.notebook]
        sweep.spend(outcome.seconds, outcome.memory)
        for key, encoded in outcome.computed.items():
            write_cell(self._cells(step), key, encoded)
        if not (outcome.error or "").startswith("Suspended") or not outcome.wanted:
            self._finish(self._settle(step, outcome, sweep))
            return
        sweep.rounds += 1
        if sweep.rounds > _ROUNDS:
            outcome = replace(outcome, error=f"its sweeps asked {_ROUNDS} times for cells that were not there")
            self._finish(self._settle(step, outcome, sweep))
            return
        sweep.elsewhere |= outcome.elsewhere
        for key, payload in outcome.wanted.items():
            if read_cell(self._cells(step), key) is None:
                sweep.waiting.add(key)
                cell = Cell(payload, self._variables, self._cell_timeout, self._library)
                self._crew.submit((step.notebook, key), compute, cell)
        sweep.asked = len(sweep.waiting)
        if not sweep.waiting:
            self._start(step)

    def _cell_done(self, step: Step, key: str, future: "Future[Computed]") -> None:
        sweep = self._sweeps[step.notebook]
        sweep.waiting.discard(key)
        if is_lost(future):
            sweep.lost, sweep.error = True, _loss(future)
        else:
            try:
                computed = future.result()
            except Exception as error:
                computed = Computed(None, f"{type(error).__name__}: {error}")
            sweep.spend(computed.seconds, computed.memory)
            if computed.result is not None:
                write_cell(self._cells(step), key, computed.result)
            else:
                sweep.error = sweep.error or computed.error
        self._show.advance(step.notebook.name, sweep.asked - len(sweep.waiting), sweep.asked, "cell of work")
        if sweep.waiting:
            return
        if sweep.error is None:
            self._start(step)
        elif sweep.lost:
            self._finish(Result(step.notebook, "unfinished", sweep.seconds, sweep.error))
        else:
            message = f"{step.notebook.name} failed in a cell of its sweep: {sweep.error}"
            self._finish(Result(step.notebook, "failed", sweep.seconds, message))

    def _finish(self, result: Result) -> None:
        name = result.notebook.name
        if result.state == "failed":  # what an earlier run finished is no result of this one
            executed(self._plan.folder, name).unlink(missing_ok=True)
        took = f" in {result.seconds:.1f} s" if result.seconds else ""
        self._forecast.finish(name, result.seconds)
        self._show.finish(name, result.state + took, self._forecast.left())
        self._results.append(result)

    def _show_progress(self, step: Step) -> None:
        name = step.notebook.name
        try:
            cell, cells = _progress_file(self._plan.folder, step.notebook).read_text("ascii").split()
        except (OSError, ValueError):  # not begun, or just being written
            return
        self._forecast.begin(name)
        self._show.advance(name, int(cell), int(cells))

    def _settle(self, step: Step, outcome: Outcome, sweep: _Sweep) -> Result:
        """Store what a worker returned: under the finished name only if it is finished."""
        notebook, name, folder = step.notebook, step.notebook.name, self._plan.folder
        content = parse_notebook(outcome.notebook)
        assert content is not None
        error, cell = outcome.error, outcome.cell
        if error is None and (cell := _nan(content)):
            error = "it prints nan: a number was lost"
        finished, broken = executed(folder, name), failed(folder, name)
        if error is not None:
            write(broken, to_json(content))
            where = f" in cell {cell}" if cell else ""
            message = f"{name} failed{where}: {error}; its copy: {shown(broken)}"
            return Result(notebook, "failed", sweep.seconds, message)
        # What was stored before has taken its time too, which is not known any more.
        cost = {} if sweep.resumed else {"seconds": round(sweep.seconds, 1), "memory": sweep.memory}
        seal(content, step.prints, self._plan.settings.parameters, cost)
        write(finished, to_json(content))
        broken.unlink(missing_ok=True)
        if not sweep.elsewhere:  # else what was used is not known here
            forget_unused(self._cells(step))
        return Result(notebook, "executed", sweep.seconds)


def _loss(future: "Future[Any]") -> str:
    """Return why a job was lost."""
    return "the Dask scheduler is gone" if future.cancelled() else "a worker process was killed (out of memory?)"


def _code(content: Mapping[str, Any]) -> int:
    """Return the length of a notebook's code."""
    return sum(len("".join(cell["source"])) for cell in content["cells"] if cell["cell_type"] == "code")


def _nan(content: Mapping[str, Any]) -> int:
    """Return the number of the first code cell that prints NaN as Python does; 0 where none does."""
    for cell in content["cells"]:
        for output in cell.get("outputs", ()):
            texts = [
                output.get("text", ""),
                *(t for kind, t in output.get("data", {}).items() if kind.startswith("text/")),
            ]
            if any(re.search(r"(?<![\w])nan(?![\w])", "".join(text)) for text in texts):
                return int(cell.get("execution_count") or 0)
    return 0
