"""Killed runs: nothing is left behind, nothing half-written is read, and the next run goes on."""

import os
import signal
import time
from collections.abc import Iterator
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
DEADLINE = 30


def _until(condition: Any) -> None:
    """Wait for a condition, for as long as a slow machine may take."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Started:
    """A run that has one notebook finished, and waits in the middle of another."""

    def __init__(self, toy: Any) -> None:
        self.began = toy.root / "began"
        self.began.unlink(missing_ok=True)
        self.process = toy.start("reproduce", "--workers", "1")
        _until(lambda: self.began.exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.stderr.read()
        self.descendants = psutil.Process(self.process.pid).children(recursive=True)

    @property
    def kernel(self) -> psutil.Process:
        return next(process for process in self.descendants if "child.py" in " ".join(process.cmdline()))

    @property
    def worker(self) -> psutil.Process:
        return psutil.Process(self.kernel.ppid())

    def ended(self) -> tuple[int, list[str]]:
        """Return the exit status, and what was said, once every process is gone."""
        _, err = self.process.communicate(timeout=DEADLINE)
        _until(lambda: not any(map(_lives, self.descendants)))
        return self.process.returncode, err.splitlines()

    def clean_up(self) -> None:
        for process in filter(_lives, self.descendants):
            process.kill()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def waiting(toy: Any) -> Iterator[Any]:
    """Return a function that starts a run of two notebooks, the second of which waits."""
    toy.notebook("toy/one", records="toy.big")
    toy.notebook("toy/two", WAIT)
    started: list[Started] = []

    def start() -> Started:
        started.append(Started(toy))
        return started[-1]

    yield start
    for run in started:
        run.clean_up()


def _left(toy: Any) -> set[str]:
    return {path.name for path in toy.executed("toy/one").parent.iterdir()}


def test_killed_run_and_killed_worker(toy: Any, waiting: Any) -> None:
    run = waiting()
    run.process.kill()
    status, _ = run.ended()
    assert status == -signal.SIGKILL
    assert "two.ipynb" not in _left(toy)
    toy.executed("toy/one").with_name(".two.ipynb.1.tmp").write_text("{half")

    run = waiting()
    run.worker.kill()
    status, said = run.ended()
    assert status == 1
    assert said[0] == "toy/one  reused"
    assert said[1:] == [
        "toy/two  unfinished",
        "implicitreg: a worker process was killed (out of memory?); not finished: toy/two; "
        "the same command again takes up from here",
    ]

    (toy.root / "go").touch()
    done = toy.run("reproduce")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("toy/one  reused\ntoy/two  executed in ")
    assert "1 claim: 1 reproduced" in done.stdout
    assert _left(toy) == {"one.ipynb", "two.ipynb"}


def test_interrupted_and_second_run_at_once(toy: Any, waiting: Any) -> None:
    run = waiting()
    second = toy.run("reproduce")
    assert (second.returncode, second.stdout) == (2, "")
    assert second.stderr == (
        "implicitreg: _build/runs/book-seed0 is in use by another implicitreg: wait until it has ended\n"
    )
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
    status, said = run.ended()
    assert status == 130
    assert said[0].startswith("toy/one  executed in ")
    assert said[1:] == ["implicitreg: interrupted; the same command again takes up what has not finished"]
    assert "two.ipynb" not in _left(toy)
