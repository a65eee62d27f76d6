"""Whole runs of tiny notebooks: what is executed, stored, reused and judged."""

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from implicitreg.reproduce import planning, runner
from implicitreg.reproduce.cli import main
from implicitreg.reproduce.project import Project


def _text(path: Path) -> str:
    """Return all that a notebook printed."""
    outputs = [output for cell in json.loads(path.read_text())["cells"] for output in cell.get("outputs", ())]
    return "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")


@pytest.fixture(scope="module")
def finished(toy_at: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project whose notebooks are executed; tests work on copies."""
    toy = toy_at(tmp_path_factory.mktemp("finished") / "project")
    toy.notebook("toy/one", "print(depth)", records="toy.big")
    toy.notebook("toy/two", "import os, sys; print(os.getcwd(), sys.executable, os.environ['OMP_NUM_THREADS'])")
    # A python3 that a user once registered must not be the one that runs.
    kernel = {"argv": ["/bin/false"], "display_name": "Wrong", "language": "python"}
    toy.write("elsewhere/kernels/python3/kernel.json", json.dumps(kernel))
    places = {"JUPYTER_PATH": str(toy.root / "elsewhere"), "PATH": "/usr/bin:/bin", "JUPYTER_PREFER_ENV_PATH": "0"}
    done = toy.run("reproduce", env={**os.environ, **places})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("executed in") == 2
    return toy.root


@pytest.fixture
def copy(finished: Path, toy_at: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a copy of the finished project, with this process in its folder."""
    shutil.copytree(finished, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return toy_at(tmp_path / "project")


def _planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Return what a dry run says of each notebook."""
    capsys.readouterr()
    assert main(["reproduce", "--dry-run", *arguments]) == 0
    return [line.split("  would be ")[1] for line in capsys.readouterr().out.splitlines()]


def test_kernel_is_this_interpreter_in_the_chapter(finished: Path) -> None:
    text = _text(finished / "_build/runs/book-seed0/toy/two.ipynb")
    assert text == f"{finished / 'book/toy'} {sys.executable} 1\n"


@pytest.mark.parametrize(("depth", "transport"), [(0, "ipc"), (3, "tcp")])
def test_kernels_share_no_ports_where_paths_are_short(toy: Any, depth: int, transport: str) -> None:
    """A free port may be taken before the kernel binds it; a socket's path may have some hundred characters."""
    told = "from ipykernel.connect import get_connection_info as get; print(get(unpack=True)['transport'])"
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        place = Path(folder, *["deep" * 10] * depth)
        place.mkdir(parents=True, exist_ok=True)
        toy.notebook("toy/one", told, records="toy.big")
        done = toy.run("reproduce", env={**os.environ, "TMPDIR": str(place)})
        assert done.returncode == 0, done.stderr
        assert not list(place.iterdir())
    assert _text(toy.executed("toy/one")) == f"{transport}\n"


def test_no_cell_is_added_where_nothing_was_turned(finished: Path) -> None:
    original = json.loads((finished / "book/toy/one.ipynb").read_text())
    executed = json.loads((finished / "_build/runs/book-seed0/toy/one.ipynb").read_text())
    assert [cell["id"] for cell in executed["cells"]] == [cell["id"] for cell in original["cells"]]
    assert str(finished) not in json.dumps(executed["metadata"])


def test_claims_json(finished: Path) -> None:
    text = (finished / "_build/runs/book-seed0/claims.json").read_text()
    content = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    environment, (claim,) = content["environment"], content["claims"]
    assert {"python", "torch", "cpu", "threads", "commit", "lock", "data"} <= environment.keys()
    assert (environment["scale"], environment["seed"], environment["threads"]) == ("book", 0, 1)
    assert (claim["id"], claim["verdict"], claim["notebook"]) == ("toy.big", "reproduced", "toy/one")
    assert claim["measured"]["value"] == 42
    assert 0 < claim["seconds"] < 60


def test_second_run_executes_nothing(copy: Any, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    before = {path: path.read_bytes() for path in copy.root.rglob("*.*") if path.is_file()}
    monkeypatch.setattr(runner, "execute", None)
    monkeypatch.setattr(runner, "processes", None)
    assert main(["reproduce"]) == 0
    out, err = capsys.readouterr()
    assert err == "toy/one  reused\ntoy/two  reused\n"
    assert "C01" in out
    assert "1 claim: 1 reproduced; all as expected" in out
    assert "_build/runs/book-seed0/claims.json" in out
    assert max(map(len, out.splitlines())) <= 80
    assert {path: path.read_bytes() for path in copy.root.rglob("*.*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "old", "new", "planned"),
    [
        ("lib/toylib.py", "42", "41", ["executed: library", "executed: library"]),
        ("constraints.txt", "6.0", "6.1", ["executed: constraints", "executed: constraints"]),
        ("book/toy/claims.yml", "least forty", "least 40", ["executed: claims", "executed: claims"]),
        ("book/toy/one.ipynb", "print(depth)", "print(-depth)", ["executed: cells", "reused"]),
        ("README.md", "toy", "small toy", ["reused", "reused"]),
        ("book/index.md", "Toy", "The toy", ["reused", "reused"]),
    ],
)
def test_changed_file(copy: Any, capsys, name: str, old: str, new: str, planned: list[str]) -> None:
    text = (copy.root / name).read_text()
    assert old in text
    copy.write(name, text.replace(old, new))
    assert _planned(capsys) == planned


def test_changed_parameters_and_fresh(copy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert _planned(capsys, "--device", "cpu") == ["executed: parameters"] * 2
    assert _planned(capsys, "--fresh") == ["executed: asked for"] * 2
    for elsewhere in (["--seed", "1"], ["--scale", "smoke"], ["-p", "depth=4"], ["--output", "other"]):
        assert _planned(capsys, *elsewhere) == ["executed: not executed yet"] * 2
    assert _planned(capsys, "-p", "seed=0", "toy/two") == ["reused"]


@pytest.mark.parametrize("damage", [lambda text: text[: len(text) // 2], lambda text: "", lambda text: "{}"])
def test_half_a_file_is_never_read(copy: Any, capsys, damage: Callable[[str], str]) -> None:
    path = copy.executed("toy/one")
    path.write_text(damage(path.read_text()))
    assert _planned(capsys) == ["executed: not executed yet", "reused"]
    assert main(["verdicts", "book-seed0"]) == 0
    assert "1 not run" in capsys.readouterr().out


def test_recorded_notebook_is_no_finished_one(copy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(copy.root / "book/toy/one.ipynb", copy.executed("toy/one"))
    assert _planned(capsys) == ["executed: not executed yet", "reused"]


def test_changed_library_changes_the_result(copy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stamp = copy.executed("toy/two").stat().st_mtime_ns
    copy.write("lib/toylib.py", "ANSWER = 39\n")
    assert main(["reproduce", "toy/one"]) == 0
    out, err = capsys.readouterr()
    assert "toy/one  executed in" in err
    assert "1 differs; not as expected: toy.big" in out
    assert copy.executed("toy/two").stat().st_mtime_ns == stamp


def test_another_executor_seed_scale_and_parameter(copy: Any) -> None:
    project = Project(copy.root)
    settings = planning.Settings(scale="smoke", seed=1, extra={"depth": 4})
    plan = planning.Plan(project, project.resolve(["toy/one"]), settings, output=copy.root / "other")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        report = runner.reproduce(plan, executor=executor)
    assert [result.state for result in report.results] == ["executed"]
    assert report.folder == copy.root / "other/smoke-seed1-depth=4"
    assert _text(report.folder / "toy/one.ipynb") == "4\n"
    (one,) = report.judged
    assert one.judgement.measured is not None
    assert (one.judgement.measured.value, one.judgement.scale) == (43, "smoke")


def test_failures_are_told_and_the_others_finish(inside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    inside.notebook("toy/fine", records="toy.big")
    inside.notebook("toy/raises", "print('so far')", "1 / 0", "print('never')")
    inside.notebook("toy/dies", "import os; os._exit(1)")
    inside.notebook("toy/slow", "import threading; _ = threading.Event().wait(60)")
    inside.write("_build/runs/book-seed0/toy/raises.ipynb", "from an older run")
    assert main(["reproduce", "--cell-timeout", "1"]) == 1
    out, err = capsys.readouterr()
    assert "1 claim: 1 reproduced" in out
    told = {line.split()[1]: line for line in err.splitlines() if line.startswith("implicitreg: ")}
    assert told.keys() == {"toy/raises", "toy/dies", "toy/slow"}
    copy = "_build/runs/book-seed0/toy/raises.failed.ipynb"
    assert told["toy/raises"] == (
        f"implicitreg: toy/raises failed in cell 3: ZeroDivisionError: division by zero; its copy: {copy}"
    )
    assert "failed in cell 2: its kernel died" in told["toy/dies"]
    assert "failed in cell 2: it took longer than 1 s" in told["toy/slow"]
    assert "Traceback" not in err
    assert _text(inside.root / copy) == "so far\n"
    assert inside.executed("toy/fine").exists()
    for name in ("raises", "dies", "slow"):
        assert not inside.executed(f"toy/{name}").exists()
        assert inside.executed(f"toy/{name}.failed").exists()

    inside.notebook("toy/raises", "print('mended')")
    assert main(["reproduce", "toy/raises"]) == 0
    assert not inside.executed("toy/raises.failed").exists()
    assert _text(inside.executed("toy/raises")) == "mended\n"


def test_broken_evidence_is_one_line(copy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy.executed("toy/one")
    path.write_text(path.read_text().replace("toy.big", "toy.unknown"))
    for command in (["reproduce"], ["verdicts"], ["verdicts", "book-seed0"], ["diff", "recorded", "book-seed0"]):
        assert main(command) == 1
        err = capsys.readouterr().err.splitlines()
        assert "unknown claim 'toy.unknown'" in err[-1]
