"""One notebook, executed through papermill in a process of its own.

A job and its outcome are plain data, and the worker writes nothing that anybody reads later: whoever asked for the
outcome stores it. So a job can run in any `concurrent.futures.Executor`, on this machine or another.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from implicitreg.reproduce.fingerprint import other_library
from implicitreg.reproduce.sweeps import CELLS, SUFFIX, TASK, read_cell, write_cell
from implicitreg.reproduce.work import handover, memory_of

TOKEN = ".token"
LANGUAGE = "python"
LONGEST_SOCKET = 100  # characters in the path of a socket: macOS takes 103, Linux 107
KERNEL = {"display_name": "Python 3", "language": LANGUAGE, "name": "python3"}


@dataclass(frozen=True)
class Job:
    """A notebook to be executed.

    Attributes
    ----------
    name
        Its short name.
    source
        The notebook as JSON text.
    folder
        The working directory.
    parameters
        Those whose value is not the notebook's own; they go into a cell below the one tagged ``parameters``.
    variables
        Environment variables of the kernel.
    cell_timeout
        Seconds that a cell may take.
    progress
        A file to which the number of cells begun, and of all cells, is written; ``None`` for none.
    cells, token
        The folder with the stored cells of its sweeps, and what the file `TOKEN` in it says: where that is not the
        same, this is another machine, and the folder another one.
    shipped
        The stored cells, for another machine.
    library
        The hash of the library that must be installed where it is executed; ``None``: any.
    """

    name: str
    source: str
    folder: str
    parameters: Mapping[str, Any]
    variables: Mapping[str, str]
    cell_timeout: int
    progress: str | None = None
    cells: str | None = None
    token: str = ""
    shipped: Mapping[str, bytes] = field(default_factory=dict)
    library: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes
    ----------
    notebook
        The executed notebook as JSON text, as far as it came.
    seconds
        What it took.
    error
        ``None``, or why it failed, in one line.
    cell
        The number, ``In [n]``, of the last code cell that was started: the one that failed, where one did.
    memory
        The most memory that its kernel held, in MB; ``None`` where that is not known.
    wanted
        The cells of its sweeps without which it cannot go on, key to payload.
    computed
        The cells that it computed itself on another machine, key to encoded result.
    elsewhere
        Whether that was another machine, which does not see the folder of the stored cells.
    """

    notebook: str
    seconds: float
    error: str | None = None
    cell: int = 0
    memory: int | None = None
    wanted: Mapping[str, bytes] = field(default_factory=dict)
    computed: Mapping[str, bytes] = field(default_factory=dict)
    elsewhere: bool = False


def _kernel_manager(place: Path, variables: Mapping[str, str]) -> type:
    """Return a kernel manager that knows one kernel: this interpreter.

    A notebook names its kernel, ``python3``; which interpreter that is depends on what users have registered. They
    talk through sockets in ``place``: a free TCP port may be another process's by the time that the kernel is up.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    # -P: neither this folder nor the working directory may shadow what the kernel imports while it starts.
    argv = [sys.executable, "-P", os.fspath(Path(__file__).with_name("child.py")), "-f", "{connection_file}"]

    connection = os.fspath(place / "kernel.json")
    short = len(os.fsencode(connection)) < LONGEST_SOCKET - len("-ipc-5")

    class ThisInterpreter(AsyncKernelManager):
        @default("connection_file")
        def _in_place(self) -> str:
            return connection

        @default("transport")
        def _through_files(self) -> str:
            return "ipc" if short and hasattr(socket, "AF_UNIX") else "tcp"

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(argv=argv, env=dict(variables), display_name="Python 3", language=LANGUAGE)

    return ThisInterpreter


def as_node(notebook: Mapping[str, Any]) -> Any:
    """Return plain JSON data as papermill takes it, whatever kernel the notebook was last saved with."""
    import nbformat

    notebook = {**notebook, "metadata": {**notebook["metadata"], "kernelspec": KERNEL}}
    return nbformat.from_dict(notebook)


def as_text(node: Any) -> str:
    """Return a notebook, as papermill gives it, as the text of its file."""
    import nbformat

    return str(nbformat.writes(node)) + "\n"


def _one_line(error: BaseException, cell_timeout: int) -> str:
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, PapermillExecutionError):
        name, text = error.ename, str(error.evalue)
    elif isinstance(error, CellTimeoutError):
        return f"it took longer than {cell_timeout} s (--cell-timeout)"
    elif isinstance(error, DeadKernelError):
        return "its kernel died (out of memory?)"
    else:
        name, text = type(error).__name__, str(error)
    first = next(iter(text.strip().splitlines()), "")
    return f"{name}: {first}" if first else name


def execute(job: Job) -> Outcome:
    """Execute a notebook. A failing notebook is an outcome, not an exception."""
    if job.library is not None and (complaint := other_library(job.library, job.variables)):
        return Outcome(job.source, 0.0, complaint)
    with handover() as (place, variables):
        elsewhere = job.cells is not None and _token(Path(job.cells)) != job.token
        cells = place / "cells" if elsewhere or job.cells is None else Path(job.cells)
        cells.mkdir(parents=True, exist_ok=True)
        for left in cells.glob(f"*{TASK}"):  # by a worker that was killed
            left.unlink(missing_ok=True)
        if elsewhere:
            for key, encoded in job.shipped.items():
                write_cell(cells, key, encoded)
        outcome = _execute(job, place, {**job.variables, **variables, CELLS: os.fspath(cells)})
        wanted = {path.stem: path.read_bytes() for path in cells.glob(f"*{TASK}")}
        for key in wanted:
            (cells / f"{key}{TASK}").unlink(missing_ok=True)
        new = {path.stem for path in cells.glob(f"*{SUFFIX}")} - job.shipped.keys() if elsewhere else set()
        found = {key: read_cell(cells, key) for key in sorted(new)}
        computed = {key: encoded for key, encoded in found.items() if encoded is not None}
        return replace(outcome, memory=memory_of(place), wanted=wanted, computed=computed, elsewhere=elsewhere)


def _token(cells: Path) -> str | None:
    """Return what tells the run's folder of cells from another machine's folder of the same name."""
    try:
        return (cells / TOKEN).read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return None


def _execute(job: Job, place: Path, variables: Mapping[str, str]) -> Outcome:
    import papermill

    folder = job.folder if os.path.isdir(job.folder) else os.fspath(place)
    begun = 0  # code cells that were started, so the number of the last: In [1], In [2], ...
    live: list[Any] = []  # the notebook while it fills with outputs, so that a failure keeps what there was
    source = as_node(json.loads(job.source))
    started = time.perf_counter()

    def count(cell: Any, cell_index: int) -> None:
        nonlocal begun
        begun += bool(cell.cell_type == "code" and cell.source.strip())
        if job.progress is not None:
            with suppress(OSError):  # elsewhere, that folder may not exist
                Path(job.progress).write_text(f"{cell_index + 1} {len(live[0].cells)}", "ascii")

    error = None
    try:
        done = papermill.execute_notebook(
            source,
            None,
            dict(job.parameters),
            kernel_name=KERNEL["name"],
            language=LANGUAGE,
            progress_bar=False,
            execution_timeout=job.cell_timeout,
            kernel_manager_class=_kernel_manager(place, variables),
            resources={"metadata": {"path": folder}},
            record_timing=False,
            on_notebook_start=lambda notebook: live.append(notebook),
            on_cell_start=count,
        )
    except Exception as problem:
        done = live[0] if live else source
        error = _one_line(problem, job.cell_timeout)
    done.metadata.pop("papermill", None)  # the paths and times of this machine; each cell keeps its own
    return Outcome(as_text(done), time.perf_counter() - started, error, begun)


def start_worker(log: str) -> None:
    """Prepare a process of the pool: quiet, deaf to Ctrl-C, and gone as soon as the run is.

    Parameters
    ----------
    log
        Takes what papermill and the kernels say outside the notebooks.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run hears it, and ends its workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # as held when the process was started
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    run = multiprocessing.parent_process()
    assert run is not None

    def end_with_run() -> None:
        run.join()
        os._exit(1)

    threading.Thread(target=end_with_run, daemon=True).start()
