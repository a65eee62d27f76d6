"""Killed runs and killed workers: nothing is left behind, nothing half-written is read, and the next run goes on."""

import gc
import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from implicitreg.reproduce.work import processes

from .conftest import SWEEP, WAIT, Started, claims_of, computed, lives, started_by_implicitreg, stored, until


def _left(toy: Any) -> set[str]:
    return {path.name for path in toy.executed("toy/one").parent.iterdir()}


@pytest.fixture
def waiting(toy: Any, begin: Callable[..., Started]) -> Callable[[], Started]:
    """Return a function that starts a run of two notebooks, the second of which waits."""
    toy.notebook("toy/one", records="toy.big")
    toy.notebook("toy/two", WAIT)
    return lambda: begin("--workers", "1")


def test_killed_run(toy: Any, waiting: Callable[[], Started]) -> None:
    run = waiting()
    run.process.kill()
    status, _ = run.ended()
    assert status == -signal.SIGKILL
    assert "two.ipynb" not in _left(toy)
    toy.executed("toy/one").with_name(".two.ipynb.1.tmp").write_text("{half")

    run.go_on()
    done = toy.run("reproduce")
    assert done.returncode == 0, done.stderr
    assert "toy/one  reused\n" in done.stderr
    assert "toy/two  executed in " in done.stderr
    assert "1 claim: 1 reproduced" in done.stdout
    assert _left(toy) == {"one.ipynb", "two.ipynb"}


def test_killed_worker(toy: Any, waiting: Callable[[], Started]) -> None:
    run = waiting()
    run.worker.kill()
    until(lambda: len(started_by_implicitreg(psutil.Process(run.process.pid))) == 1)  # the job was handed out again
    run.go_on()
    status, said = run.ended()
    assert status == 0
    assert [line for line in said if "failed" in line or "unfinished" in line or "Traceback" in line] == []
    assert _left(toy) == {"one.ipynb", "two.ipynb"}


def test_a_job_that_kills_every_worker_is_given_up(toy: Any) -> None:
    toy.notebook("toy/one", records="toy.big")
    toy.notebook("toy/deadly", "import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    done = toy.run("reproduce", "--workers", "2")
    assert done.returncode == 1
    assert "toy/one     executed in " in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "implicitreg: a worker process was killed (out of memory?); not finished: toy/deadly; "
        "the same command again takes up from here"
    )
    assert "Traceback" not in done.stderr
    assert "1 claim: 1 reproduced" in done.stdout


@pytest.mark.parametrize(
    ("scale", "victim"),
    [("book", "worker"), ("book", "kernel"), ("book", "run"), ("paper", "worker"), ("paper", "run")],
)
def test_killed_within_a_sweep(toy: Any, begin: Callable[..., Started], scale: str, victim: str) -> None:
    toy.notebook("toy/one", SWEEP, records="toy.big")
    held, finished = (2, 2) if scale == "book" else (3, 3)  # at scale book they are computed one after the other
    (toy.root / "hold").write_text(str(held))
    run = begin("--scale", scale, "--workers", "2")
    until(lambda: stored(toy, scale) == finished)
    if victim == "worker":
        (held_one,) = started_by_implicitreg(psutil.Process(run.process.pid))
        run.worker.kill()
        until(lambda: not lives(held_one))  # it ends with the one that started it
        run.go_on()
        status, _ = run.ended()
        assert status == 0
    elif victim == "kernel":
        (kernel,) = started_by_implicitreg(psutil.Process(run.process.pid))
        kernel.kill()
        status, said = run.ended()
        assert status == 1
        assert "toy/one failed in cell 2: its kernel died (out of memory?)" in said[-1]
    else:
        run.process.kill()
        run.ended()
    run.go_on()
    done = toy.run("reproduce", "--scale", scale)
    assert done.returncode == 0, done.stderr
    assert computed(toy) == list("0123")  # none of them twice
    alone = toy.run("reproduce", "--scale", scale, "--output", "alone")
    assert alone.returncode == 0
    assert claims_of(toy, scale) == claims_of(toy, scale, "alone")


def test_no_process_is_interrupted_while_it_starts() -> None:
    """Ctrl-C reaches all processes of a terminal, also those that have not come to say what they do about it."""
    with processes(1, gc.collect) as pool:
        held = pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result()
    assert signal.SIGINT in held
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_interrupted_and_second_run_at_once(toy: Any, waiting: Callable[[], Started]) -> None:
    run = waiting()
    second = toy.run("reproduce")
    assert (second.returncode, second.stdout) == (2, "")
    assert second.stderr == (
        "implicitreg: _build/runs/book-seed0 is in use by another implicitreg: wait until it has ended\n"
    )
    run.interrupt()
    status, said = run.ended()
    assert status == 130
    assert said[0].startswith("toy/one  executed in ")
    assert said[1:] == ["implicitreg: interrupted; the same command again takes up what has not finished"]
    assert "two.ipynb" not in _left(toy)
