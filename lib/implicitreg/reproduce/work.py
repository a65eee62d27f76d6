"""Jobs handed to any `concurrent.futures.Executor`, and taken back as they are done.

Notebooks and the cells of their sweeps go through here alike. A job that a killed process takes with it is handed out
again; everything else that was finished, or runs elsewhere, stays untouched.
"""

import logging
import multiprocessing
import os
import re
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Generic, TypeVar

from implicitreg.reproduce.project import UsageError

Key = TypeVar("Key", bound=Hashable)
ATTEMPTS = 3  # a job that is lost this often is not handed out again: it may be what kills the processes


class Crew(Generic[Key]):
    """An executor, with what it has been given to do.

    Parameters
    ----------
    executor
        Who does the work.
    attempts
        How often a job is handed out at most, when processes are killed under it.

    Examples
    --------
    >>> with ThreadPoolExecutor(2) as pool:
    ...     crew = Crew(pool)
    ...     crew.submit("two", abs, -2)
    ...     [(key, future.result()) for key, future in crew.done()]
    [('two', 2)]
    """

    def __init__(self, executor: Executor, attempts: int = ATTEMPTS) -> None:
        self._executor, self._attempts = executor, attempts
        self._pending: dict[Future[Any], tuple[Key, int, Callable[[], Future[Any]]]] = {}

    def __bool__(self) -> bool:
        """Whether anything is still to be done."""
        return bool(self._pending)

    @property
    def pending(self) -> list[Key]:
        """What is still to be done."""
        return [key for key, _, _ in self._pending.values()]

    def submit(self, key: Key, function: Callable[..., Any], *arguments: Any) -> None:
        """Hand out a job under a key of the caller's."""
        self._hand_out(key, 1, lambda: self._executor.submit(function, *arguments))

    def _hand_out(self, key: Key, attempt: int, submit: Callable[[], "Future[Any]"]) -> None:
        try:
            future = submit()
        except Exception as error:  # the whole executor is gone
            future = Future()
            future.set_exception(error)
        self._pending[future] = key, attempt, submit

    def done(self, timeout: float | None = None) -> "list[tuple[Key, Future[Any]]]":
        """Return what has been done since, once there is something or the time (in seconds) is over.

        A job that was lost with its process is handed out again. One that is lost too often, or with the executor as
        a whole, is among those done; its future raises what `is_lost` knows.
        """
        finished, _ = wait(self._pending, timeout=timeout, return_when=FIRST_COMPLETED)
        found = []
        for future in finished:
            key, attempt, submit = self._pending.pop(future)
            # Cancelled by nobody here: the scheduler is gone, and handing out again would wait for it for ever.
            # Of what kills a worker of Dask, the scheduler has tried others already.
            if not future.cancelled() and isinstance(future.exception(), BrokenExecutor) and attempt < self._attempts:
                self._hand_out(key, attempt + 1, submit)
            else:
                found.append((key, future))
        return found


def is_lost(future: "Future[Any]") -> bool:
    """Tell whether a job was lost with the process, or the executor, that was to do it."""
    try:
        error = future.exception()
    except CancelledError:
        return True
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"


class Processes(ThreadPoolExecutor):
    """Processes on this machine, of which each can be killed without harm to the others.

    `ProcessPoolExecutor` gives up all of its processes when one is killed; so each thread here has one of its own.

    Parameters
    ----------
    count
        How many.
    initializer, *arguments
        What each process calls first.
    """

    def __init__(self, count: int, initializer: Callable[..., None], *arguments: Any) -> None:
        super().__init__(count)
        self._first, self._arguments = initializer, arguments
        self._mine = threading.local()
        self._pools: list[ProcessPoolExecutor] = []
        self._others = set(multiprocessing.active_children())

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Have a process call ``fn``."""
        return super().submit(self._in_process, fn, *args, **kwargs)

    def _in_process(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        pool = getattr(self._mine, "pool", None)
        if pool is None:
            # For this thread and what it starts: a process that Ctrl-C reaches while it starts ends with a traceback.
            # The run's first thread hears it for all.
            resource_tracker.ensure_running()  # before, because starting it lifts what is held
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            # Not forked: a fork would share the terminal's threads and hold the lock beyond the run's death.
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(1, spawn, initializer=self._first, initargs=self._arguments)
            self._mine.pool = pool
            self._pools.append(pool)
        try:
            return pool.submit(fn, *args, **kwargs).result()
        except BrokenExecutor:
            self._mine.pool = None
            raise

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End, once what was begun is done."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        for pool in self._pools:
            pool.shutdown(wait, cancel_futures=cancel_futures)

    def kill(self) -> None:
        """End at once, whatever was begun."""
        super().shutdown(wait=False, cancel_futures=True)
        while True:
            for child in set(multiprocessing.active_children()) - self._others:
                child.kill()
            if not any(thread.is_alive() for thread in self._threads):
                return
            time.sleep(0.02)


@contextmanager
def processes(count: int, initializer: Callable[..., None], *arguments: Any) -> Iterator[Executor]:
    """Give processes that end with the block: when their work is done, or at once where the block is left early."""
    pool = Processes(count, initializer, *arguments)
    try:
        yield pool
    except BaseException:
        pool.kill()
        raise
    finally:
        pool.shutdown()


@contextmanager
def dask(address: str, unfit: Callable[[], str | None], cpu: Callable[[], str]) -> Iterator[tuple[Executor, int, str]]:
    """Give the workers of a Dask scheduler as an executor, how many jobs they take at a time, and what they are.

    Parameters
    ----------
    address
        The scheduler's.
    unfit, cpu
        What each worker is asked: why it cannot take part, if it cannot, and what processor it has.

    Raises
    ------
    UsageError
        Dask is not installed, no scheduler answers at the address, it has no worker, or one that is unfit.
    """
    try:
        import distributed
    except ModuleNotFoundError:
        raise UsageError("--dask: distributed is not installed: pip install 'implicitreg[cluster]'") from None
    # What goes wrong is told by the runner, in one line.
    for name in [*logging.root.manager.loggerDict, "tornado", "asyncio"]:
        if name.partition(".")[0] in ("distributed", "tornado", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    place = re.fullmatch(r"(?:tcp|tls)://(?:\[([^]]+)\]|([^:/]+)):(\d+)", address)
    if place is None:
        raise UsageError(f"--dask: {address!r} is no address of a scheduler: tcp://HOST:PORT or tls://HOST:PORT")
    try:
        # Asked first, because a client that gets no answer takes its time to say so.
        socket.create_connection((place[1] or place[2], int(place[3])), timeout=10).close()
        client = distributed.Client(address, timeout=10, set_as_default=False)
    except (OSError, OverflowError, TypeError, ValueError) as error:  # of TLS without its configuration, a TypeError
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(f"--dask: no Dask scheduler answers at {address!r}: {first}") from None
    try:
        threads = sum(worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())
        if not threads:
            raise UsageError(f"--dask: the scheduler at {address} has no worker: dask worker {address} starts one")
        try:
            complaints, found = client.run(unfit), client.run(cpu)
        except Exception as error:  # such as a worker where the library is not installed
            first = next(iter(str(error).splitlines()), "")
            raise UsageError(f"--dask: a worker cannot take part: {type(error).__name__}: {first}") from None
        for complaint in filter(None, complaints.values()):
            raise UsageError(f"--dask: {complaint}")
        processors = ", ".join(sorted(set(found.values())))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
            yield client.get_executor(pure=False), threads, processors
    finally:
        # Also gives up what has not been done: workers let go of it (see `leash`).
        with suppress(Exception):
            client.close(timeout=2)


@contextmanager
def leash(place: Path) -> Iterator[dict[str, str]]:
    """Give the environment variables by which a process that is started (`child`) ends when its job is given up.

    The processes of a local pool are killed when a run is given up, and what they started ends with them. A Dask
    worker outlives a run: it is asked here whether anybody still waits for the job.
    """
    path = place / "leash"
    path.touch()
    done = threading.Event()
    wanted = _dask_task()
    if wanted is not None:

        def watch() -> None:
            while not done.wait(0.5):
                if not wanted():
                    path.unlink(missing_ok=True)
                    return

        threading.Thread(target=watch, daemon=True).start()
    try:
        yield {"JPY_PARENT_PID": str(os.getpid()), "IMPLICITREG_LEASH": os.fspath(path)}
    finally:
        done.set()
        path.unlink(missing_ok=True)


def _dask_task() -> Callable[[], bool] | None:
    """Return what tells whether the Dask task of this thread is still wanted; ``None`` outside of Dask."""
    import sys

    if "distributed" not in sys.modules:  # a worker of Dask has imported it
        return None
    import distributed

    try:
        worker = distributed.get_worker()
        key = worker.get_current_task()
    except (ValueError, AttributeError):
        return None

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        alive = worker.status.name in ("running", "paused", "closing_gracefully")
        return alive and task is not None and task.state not in ("cancelled", "released", "forgotten")

    return wanted


@contextmanager
def handover() -> Iterator[tuple[Path, Mapping[str, str]]]:
    """Give a folder through which a process that is started hands things over, and its environment variables."""
    with tempfile.TemporaryDirectory(prefix="implicitreg-", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        with leash(place) as variables:
            yield place, {**variables, "IMPLICITREG_MEMORY": os.fspath(place / "memory")}


def memory_of(place: Path) -> int | None:
    """Return the most memory, in MB, that the process which was given this folder ever held; ``None``: not known."""
    try:
        return int((place / "memory").read_text("ascii"))
    except (OSError, ValueError):
        return None
