"""Runs that are stopped in the middle, and Dask on this machine."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

# A cell that says where it is, and waits until it may go on.
WAIT = """\
import pathlib, time
pathlib.Path("../../began").touch()
while not pathlib.Path("../../go").exists():
    time.sleep(0.02)
"""

# A sweep of four cells of work. Each notes that it was computed; that of the number in the file `hold` waits there.
SWEEP = """\
import pathlib
from implicitreg.reproduce.sweeps import sweep
root = str(pathlib.Path("../..").resolve())
def work(x):
    import pathlib, time
    hold = pathlib.Path(root, "hold")
    if hold.exists() and hold.read_text() == str(x):
        pathlib.Path(root, "began").touch()
        while not pathlib.Path(root, "go").exists():
            time.sleep(0.02)
    with open(pathlib.Path(root, "computed"), "a") as file:
        file.write(f"{x}\\n")
    return x * x
print(sweep(work, [{"x": x} for x in range(4)]))
"""
DEADLINE = 40


def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition, for as long as a slow machine may take."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def started_by_implicitreg(root: psutil.Process) -> list[psutil.Process]:
    """Return the kernels and cells of work below a process."""
    found = []
    for process in root.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "child.py" in " ".join(process.cmdline()):
                found.append(process)
    return found


class Started:
    """A run in a process of its own, that has come to where it waits."""

    def __init__(self, toy: Any, *arguments: str) -> None:
        self.began = toy.root / "began"
        self.began.unlink(missing_ok=True)
        (toy.root / "go").unlink(missing_ok=True)
        self.toy = toy
        self.process = toy.start("reproduce", *arguments)
        until(lambda: self.began.exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.stderr.read()
        self.descendants = psutil.Process(self.process.pid).children(recursive=True)

    @property
    def worker(self) -> psutil.Process:
        """The process that executes what waits."""
        return psutil.Process(started_by_implicitreg(psutil.Process(self.process.pid))[0].ppid())

    def go_on(self) -> None:
        """Let what waits go on."""
        (self.toy.root / "go").touch()

    def interrupt(self) -> None:
        """Press Ctrl-C, as a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ended(self) -> tuple[int, list[str]]:
        """Return the exit status, and what was said, once every process is gone."""
        _, err = self.process.communicate(timeout=DEADLINE)
        until(lambda: not any(map(lives, self.descendants)))
        return self.process.returncode, err.splitlines()

    def clean_up(self) -> None:
        for process in filter(lives, self.descendants):
            process.kill()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def begin(toy: Any) -> Iterator[Callable[..., Started]]:
    """Return a function that starts a run, and returns once it waits."""
    started: list[Started] = []

    def start(*arguments: str) -> Started:
        started.append(Started(toy, *arguments))
        return started[-1]

    yield start
    for run in started:
        run.clean_up()


class Cluster:
    """A Dask scheduler and its workers, processes of this machine that listen on the loopback interface alone."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder = folder
        address = folder / "scheduler.json"
        options = [
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--no-show",
            "--scheduler-file",
            str(address),
        ]
        self.scheduler = self._start("scheduler", "distributed.cli.dask_scheduler", *options)
        until(lambda: address.exists() and address.read_text().endswith("}"))
        self.address = json.loads(address.read_text())["address"]
        options = [self.address, "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", "--no-nanny"]
        self.workers = [
            self._start(f"worker{n}", "distributed.cli.dask_worker", *options, "--local-directory", str(folder))
            for n in range(workers)
        ]
        until(lambda: all("Registered to" in (folder / f"worker{n}.log").read_text() for n in range(workers)))

    def _start(self, name: str, module: str, *options: str) -> psutil.Process:
        command = [sys.executable, "-m", module, *options]
        with open(self.folder / f"{name}.log", "w") as log:
            return psutil.Popen(command, stdout=log, stderr=log, start_new_session=True)

    @property
    def busy(self) -> list[tuple[psutil.Process, psutil.Process]]:
        """The workers that execute something, with what they have started for it."""
        return [(w, child) for w in self.workers if lives(w) for child in started_by_implicitreg(w)]

    def last_busy(self) -> tuple[psutil.Process, psutil.Process]:
        """Return the one worker that is left with something to do, and the process that does it."""
        until(lambda: len(self.busy) == 1)
        return self.busy[0]

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            if lives(process):
                process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Return a scheduler with two workers."""
    pytest.importorskip("distributed")
    folder = tmp_path / "cluster"
    folder.mkdir()
    cluster = Cluster(folder, 2)
    yield cluster
    cluster.stop()


def computed(toy: Any) -> list[str]:
    """Return which cells of the sweep were computed, each as often as it was."""
    path = toy.root / "computed"
    return sorted(path.read_text().split()) if path.exists() else []


def stored(toy: Any, scale: str) -> int:
    """Return how many cells are stored."""
    return len(list((toy.root / f"_build/runs/{scale}-seed0/.cells").rglob("*.cell")))


def claims_of(toy: Any, scale: str, runs: str = "_build/runs") -> Any:
    """Return the claims of a run, without times."""
    return without_times(json.loads((toy.root / runs / f"{scale}-seed0/claims.json").read_text()))


def without_times(claims: Any) -> Any:
    """Return what a claims.json says but for times, and for the commit, which has nothing to do with the run."""
    for claim in claims["claims"]:
        claim.pop("seconds", None)
    return claims
