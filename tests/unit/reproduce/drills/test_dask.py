"""A cluster on this machine: the same results, and nothing lost when its parts are killed."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from implicitreg.reproduce.project import UsageError
from implicitreg.reproduce.work import dask

from .conftest import SWEEP, WAIT, Cluster, Started, claims_of, computed, lives, stored, until


@pytest.fixture
def undisturbed(toy: Any, toy_at: Callable[[Path], Any]) -> Any:
    """Return the claims of a run on this machine alone that nothing happened to."""
    toy.notebook("toy/one", SWEEP, records="toy.big")
    toy.notebook("toy/two", "print(6 * 7)")
    done = toy.run("reproduce", "--scale", "paper", "--output", "alone")
    assert done.returncode == 0, done.stderr
    claims = claims_of(toy, "paper", "alone")
    assert [claim["verdict"] for claim in claims["claims"]] == ["reproduced"]
    assert computed(toy) == list("0123")
    (toy.root / "computed").unlink()
    return claims


def test_a_killed_worker_costs_its_own_cell_alone(
    toy: Any, cluster: Cluster, undisturbed: Any, begin: Callable[..., Started]
) -> None:
    (toy.root / "hold").write_text("3")
    run = begin("--scale", "paper", "--dask", cluster.address)
    until(lambda: stored(toy, "paper") == 3)
    worker, cell = cluster.last_busy()
    worker.send_signal(signal.SIGKILL)
    until(lambda: not lives(cell))
    run.go_on()
    status, said = run.ended()
    assert (status, [line for line in said if "failed" in line or "unfinished" in line]) == (0, [])
    assert computed(toy) == list("0123")
    assert claims_of(toy, "paper") == undisturbed
    assert not cluster.busy


def test_a_killed_scheduler_leaves_what_was_finished(
    toy: Any, cluster: Cluster, undisturbed: Any, begin: Callable[..., Started]
) -> None:
    (toy.root / "hold").write_text("3")
    run = begin("--scale", "paper", "--dask", cluster.address)
    until(lambda: stored(toy, "paper") == 3)
    _, cell = cluster.last_busy()
    cluster.scheduler.send_signal(signal.SIGKILL)
    status, said = run.ended()
    assert status == 1
    assert said[-1] == (
        "implicitreg: the Dask scheduler is gone; not finished: toy/one; the same command again takes up from here"
    )
    assert "Traceback" not in "\n".join(said)
    until(lambda: not lives(cell))
    run.go_on()
    done = toy.run("reproduce", "--scale", "paper")
    assert done.returncode == 0, done.stderr
    assert computed(toy) == list("0123")
    assert claims_of(toy, "paper") == undisturbed


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_workers_let_go_of_a_run_that_is_gone(
    toy: Any, cluster: Cluster, begin: Callable[..., Started], how: str
) -> None:
    toy.notebook("toy/two", WAIT, records="toy.big")
    run = begin("--dask", cluster.address)
    _, kernel = cluster.last_busy()
    run.process.kill() if how == "killed" else run.interrupt()
    status, said = run.ended()
    assert status == (-signal.SIGKILL if how == "killed" else 130)
    if how == "interrupted":
        assert said == ["implicitreg: interrupted; the same command again takes up what has not finished"]
    until(lambda: not lives(kernel))
    run.go_on()
    done = toy.run("reproduce", "--dask", cluster.address)  # the workers are there for the next
    assert done.returncode == 0, done.stderr
    assert "toy/two  executed in " in done.stderr


def test_refusals(toy: Any, cluster: Cluster, tmp_path: Path) -> None:
    toy.notebook("toy/one", records="toy.big")
    for arguments, said in (
        (["--dask", "tcp://127.0.0.1:9"], "implicitreg: --dask: no Dask scheduler answers at 'tcp://127.0.0.1:9': "),
        (
            ["--dask", "nonsense://x"],
            "implicitreg: --dask: 'nonsense://x' is no address of a scheduler: tcp://HOST:PORT",
        ),
        (
            ["--dask", cluster.address, "--workers", "2"],
            "implicitreg: --workers is of this machine, --dask has its own",
        ),
    ):
        done = toy.run("reproduce", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(said)
        assert done.stderr.count("\n") == 1
    for worker in cluster.workers:
        worker.terminate()
        worker.wait()
    done = toy.run("reproduce", "--dask", cluster.address)
    assert done.returncode == 2
    assert "has no worker: dask worker tcp://127.0.0.1:" in done.stderr


def test_a_worker_that_is_unfit_is_refused(cluster: Cluster) -> None:
    for unfit, said in (
        (lambda: "another library", "--dask: another library"),
        (lambda: 1 / 0, "--dask: a worker cannot take part: ZeroDivisionError: division by zero"),
    ):
        with pytest.raises(UsageError, match=said), dask(cluster.address, unfit, lambda: "a processor"):
            pass
    with dask(cluster.address, lambda: None, lambda: "a processor") as (executor, threads, processors):
        assert (threads, processors) == (2, "a processor")
        assert executor.submit(abs, -3).result() == 3


def test_another_library_or_package_is_told() -> None:
    for variables, said in (({}, "None"), ({"IMPLICITREG_PINNED": "pytest"}, "is not what the run began with")):
        job = "from implicitreg.reproduce.fingerprint import library_code, other_library\n"
        job += f"print(other_library(library_code({{}}), {variables!r}))"
        asked = subprocess.run([sys.executable, "-c", job], capture_output=True, text=True, check=True)
        assert said in asked.stdout
