"""Plan, reuse, execute in parallel, store, judge."""

import ast
import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from implicitreg.reproduce.environment import describe, kernel_variables, processors
from implicitreg.reproduce.execution import Job, Outcome, as_node, execute, start_worker
from implicitreg.reproduce.fingerprint import Fingerprint, changes, fingerprint, seal, surroundings
from implicitreg.reproduce.progress import Display, display
from implicitreg.reproduce.project import (
    CommandError,
    Notebook,
    Project,
    UsageError,
    listed,
    parse_notebook,
    read_notebook,
    shown,
)
from implicitreg.reproduce.runs import CLAIMS, Judged, claims_json, executed, failed, judge, read_claims, slug
from implicitreg.reproduce.storage import locked, make_writable, sweep, to_json, write, writing_to

CELL_TIMEOUT = 600
STANDARD = ("scale", "seed", "device")  # every notebook has these parameters
_TICK = 0.2  # seconds between two looks at the progress files


@dataclass(frozen=True)
class Settings:
    """What a user can turn: the parameters of a run."""

    scale: str = "book"
    seed: int = 0
    device: str = "auto"
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters by name."""
        return {"scale": self.scale, "seed": self.seed, "device": self.device, **self.extra}

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return slug(self.scale, self.seed, self.extra)


@dataclass(frozen=True)
class Step:
    """One notebook of a run.

    Attributes
    ----------
    notebook, content
        The notebook, and its content as plain JSON data.
    prints
        Its fingerprint in this run.
    inject
        The parameters whose value is not the notebook's own.
    because
        Why it is executed; empty where the finished one is reused.
    """

    notebook: Notebook
    content: dict[str, Any]
    prints: Fingerprint
    inject: Mapping[str, Any]
    because: Sequence[str]


@dataclass(frozen=True)
class Result:
    """What became of a notebook: ``message`` says why, where it failed or did not finish."""

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
        lines = [result.message for result in self.results if result.state == "failed"]
        unfinished = [result.notebook.name for result in self.results if result.state == "unfinished"]
        if unfinished:
            lines.append(
                f"a worker process was killed (out of memory?); not finished: {listed(unfinished)}; "
                "the same command again takes up from here"
            )
        return lines


# ---------------------------------------------------------------------------------------------------------------------
# Parameters


_UNKNOWN = object()


def declared(notebook: Notebook, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that a notebook declares, with its own values."""
    import papermill

    # What papermill cannot parse is no parameter; it need not say so.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    found = {}
    for name, parameter in papermill.inspect_notebook(as_node(content)).items():
        try:
            found[name] = ast.literal_eval(parameter["default"])
        except (ValueError, SyntaxError):
            found[name] = _UNKNOWN
    missing = [name for name in STANDARD if name not in found]
    if missing:
        raise CommandError(f"{notebook.name}: no parameter {missing[0]!r} in a cell tagged 'parameters'")
    return found


def _injected(notebook: Notebook, content: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return the parameters to inject: a run that turns nothing looks exactly like the recorded notebook."""
    own = declared(notebook, content)
    for name in settings.extra:
        if name not in own:
            raise UsageError(f"{notebook.name} has no parameter {name!r}; it has: {listed(sorted(own))}")
    wanted = settings.parameters
    return {name: value for name, value in wanted.items() if (type(value), value) != (type(own[name]), own[name])}


# ---------------------------------------------------------------------------------------------------------------------
# Planning


class Plan:
    """What a run has to do, checked before anything is run or written.

    Parameters
    ----------
    project, notebooks, settings
        Which notebooks to run, and how.
    output
        The folder of all runs.
    fresh
        Execute everything, whatever is there.

    Raises
    ------
    CommandError
        A notebook cannot be read or lacks a parameter (`UsageError` where the user asked for one it has not).
    """

    def __init__(
        self,
        project: Project,
        notebooks: Sequence[Notebook],
        settings: Settings,
        *,
        output: Path | None = None,
        fresh: bool = False,
    ) -> None:
        self.project, self.settings, self.fresh = project, settings, fresh
        self.folder = (output or project.runs).absolute() / settings.name
        read_claims(project)  # a malformed claims file is told now, not after the notebooks have run
        self._contents = {notebook: notebook.read() for notebook in notebooks}
        self._inject = {n: _injected(n, content, settings) for n, content in self._contents.items()}
        self._shared = surroundings(project)

    def _prints(self, notebook: Notebook, content: Mapping[str, Any]) -> Fingerprint:
        return fingerprint(notebook, content, self.settings.parameters, self._shared)

    @cached_property
    def steps(self) -> list[Step]:
        """One step a notebook, by what lies in the run's folder now."""
        steps = []
        for notebook, content in self._contents.items():
            prints = self._prints(notebook, content)
            because = changes(read_notebook(executed(self.folder, notebook.name)), prints)
            if self.fresh and not because:
                because = ["asked for"]
            steps.append(Step(notebook, content, prints, self._inject[notebook], because))
        return steps

    def finished(self) -> dict[str, dict[str, Any]]:
        """Return every notebook in the run's folder that belongs to this book, library and settings."""
        found = {}
        for name, notebook in self.project.notebooks.items():
            content = read_notebook(executed(self.folder, name))
            if content is None:
                continue
            source = self._contents.get(notebook) or notebook.read()
            if not changes(content, self._prints(notebook, source)):
                found[name] = content
        return found


# ---------------------------------------------------------------------------------------------------------------------
# Carrying out


def reproduce(
    plan: Plan, *, workers: int | None = None, cell_timeout: int = CELL_TIMEOUT, executor: Executor | None = None
) -> Report:
    """Carry out a plan: execute what has to be, store it, judge all claims by what is there.

    Parameters
    ----------
    plan
        The plan.
    workers
        How many notebooks to run at a time; as many as there are processors by default.
    cell_timeout
        Seconds that a cell may take.
    executor
        Where to run the notebooks; processes on this machine by default.

    Returns
    -------
    Report
        A notebook that fails is told there; the others still finish.

    Raises
    ------
    CommandError
        The run's folder is in use or cannot be written to, or the evidence is not as it must be.
    """
    folder, settings = plan.folder, plan.settings
    with locked(folder):
        sweep(folder)
        for step in plan.steps:
            _clear_way(folder, step.notebook)
        jobs = [step for step in plan.steps if step.because]
        with display([step.notebook.name for step in plan.steps]) as show:
            results = [_reuse(step, show) for step in plan.steps if not step.because]
            if jobs:
                with _workers(executor, min(workers or processors(), len(jobs)), folder) as pool:
                    results += _carry_out(plan, jobs, pool, cell_timeout, show)
        judged = judge(plan.project, plan.finished(), settings.scale)
        environment = describe(plan.project, settings.parameters)
        write(folder / CLAIMS, to_json(claims_json(environment, judged)))
    order = [step.notebook for step in plan.steps]
    return Report(folder, sorted(results, key=lambda result: order.index(result.notebook)), judged)


def _clear_way(folder: Path, notebook: Notebook) -> None:
    """Make sure, before hours of work, that the results can be stored."""
    target = executed(folder, notebook.name)
    make_writable(target.parent)
    for path in (target, failed(folder, notebook.name), folder / CLAIMS):
        if path.is_dir():
            raise UsageError(f"cannot write to {shown(path)}: Is a directory")


def _reuse(step: Step, show: Display) -> Result:
    show.finish(step.notebook.name, "reused")
    return Result(step.notebook, "reused")


@contextmanager
def _workers(executor: Executor | None, count: int, folder: Path) -> Iterator[Executor]:
    """Give the user's executor, or a pool of processes that ends with the block, however it ends."""
    if executor is not None:
        yield executor
        return
    log = folder / "log.txt"
    with writing_to(log):
        log.write_bytes(b"")
    others = set(multiprocessing.active_children())
    # Not forked: a fork would share the terminal's threads and hold the lock beyond the run's death.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, initializer=start_worker, initargs=(os.fspath(log),))
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while processes start: they would begin with a traceback, before they can say otherwise."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _progress_file(folder: Path, notebook: Notebook) -> Path:
    target = executed(folder, notebook.name)
    return target.with_name(f".{target.stem}.progress.tmp")


def _carry_out(plan: Plan, steps: Sequence[Step], pool: Executor, cell_timeout: int, show: Display) -> list[Result]:
    variables = kernel_variables(plan.project)
    jobs = [
        Job(
            name=step.notebook.name,
            source=json.dumps(step.content),
            folder=os.fspath(step.notebook.path.parent),
            parameters=step.inject,
            variables=variables,
            cell_timeout=cell_timeout,
            progress=os.fspath(_progress_file(plan.folder, step.notebook)),
        )
        for step in steps
    ]
    results = []
    # The most code first: what runs long should not begin last, and nothing better is known about a notebook.
    queue = sorted(zip(jobs, steps, strict=True), key=lambda each: _code(each[1].content), reverse=True)
    with _interrupts_held():
        pending = {pool.submit(execute, job): step for job, step in queue}
    import scipy.stats  # noqa: F401  # for the verdicts: takes most of a second, which is free while the notebooks run

    while pending:
        done, _ = wait(pending, timeout=_TICK, return_when=FIRST_COMPLETED)
        for future in done:
            step = pending.pop(future)
            result = _settle(plan, step, future)
            _progress_file(plan.folder, step.notebook).unlink(missing_ok=True)
            took = f" in {result.seconds:.1f} s" if result.seconds else ""
            show.finish(step.notebook.name, result.state + took)
            results.append(result)
        for step in pending.values():
            _show_progress(plan.folder, step.notebook, show)
    return results


def _code(content: Mapping[str, Any]) -> int:
    """Return the length of a notebook's code."""
    return sum(len("".join(cell["source"])) for cell in content["cells"] if cell["cell_type"] == "code")


def _show_progress(folder: Path, notebook: Notebook, show: Display) -> None:
    try:
        cell, cells = _progress_file(folder, notebook).read_text("ascii").split()
    except (OSError, ValueError):  # not begun, or just being written
        return
    show.advance(notebook.name, int(cell), int(cells))


def _settle(plan: Plan, step: Step, future: "Future[Outcome]") -> Result:
    """Store what a worker returned: under the finished name only if it is finished."""
    notebook, name = step.notebook, step.notebook.name
    try:
        outcome = future.result()
    except BrokenExecutor:
        return Result(notebook, "unfinished")
    except Exception as error:
        return Result(notebook, "failed", message=f"{name} failed: {type(error).__name__}: {error}")
    content = parse_notebook(outcome.notebook)
    assert content is not None
    finished, broken = executed(plan.folder, name), failed(plan.folder, name)
    if outcome.error is not None:
        write(broken, to_json(content))
        finished.unlink(missing_ok=True)
        where = f" in cell {outcome.cell}" if outcome.cell else ""
        message = f"{name} failed{where}: {outcome.error}; its copy: {shown(broken)}"
        return Result(notebook, "failed", outcome.seconds, message)
    seal(content, step.prints, plan.settings.parameters)
    write(finished, to_json(content))
    broken.unlink(missing_ok=True)
    return Result(notebook, "executed", outcome.seconds)
