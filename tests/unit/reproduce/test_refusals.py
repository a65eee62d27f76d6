"""A command that cannot be carried out is answered by one line, exit status 2, and nothing else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from implicitreg.reproduce.cli import main


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("reproduce nosuch", "nosuch.*chapters: toy; notebooks: toy/one"),
        ("reproduce toy/nosuch", "nosuch.*chapters: toy; notebooks: toy/one"),
        ("reproduce --scale huge", "huge.*smoke, book, paper"),
        ("reproduce --seed -1", "seed"),
        ("reproduce --seed x", "seed"),
        ("reproduce --seed 1.5", "seed"),
        ("reproduce --workers 0", "workers"),
        ("reproduce --workers many", "workers"),
        ("reproduce --cell-timeout 0", "cell-timeout"),
        ("reproduce --device tpu", "tpu.*auto, cpu, cuda"),
        ("reproduce -p nosuch=3", "toy/one has no parameter 'nosuch'.*depth, device, scale, seed"),
        ("reproduce -p depth", "NAME=VALUE"),
        ("reproduce -p 3=depth", "NAME=VALUE"),
        ("reproduce -p depth=1 -p depth=2", "twice"),
        ("reproduce -p seed=3", "contradicts --seed 0"),
        ("reproduce --scale smoke -p scale=book", "contradicts --scale smoke"),
        ("reproduce --nosuch", "--nosuch"),
        ("reproduce --seed", "seed"),
        ("reproduce --output README.md", "cannot write to README.md/book-seed0: Not a directory"),
        ("reproduce --output README.md/deep", "cannot write to README.md/deep/book-seed0: Not a directory"),
        ("nosuch", "nosuch.*commands: reproduce, verdicts, render, pdf, record, keep, diff"),
        ("verdicts nosuch", "no run 'nosuch'.*recorded"),
        ("render nosuch", "no run 'nosuch'"),
        ("pdf", "no rendered book to print: make book"),
        ("diff recorded nosuch", "no run 'nosuch'"),
        ("diff recorded", "RUN"),
        ("verdicts book", "no finished notebook"),
        ("record nosuch", "nosuch.*chapters: toy"),
    ],
)
def test_refused(inside, capsys: pytest.CaptureFixture[str], command: str, told: str) -> None:
    inside.notebook("toy/one", "raise SystemError('this must not run')")
    before = sorted(inside.root.rglob("*"))
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert re.search(told, err)
    assert sorted(inside.root.rglob("*")) == before


@pytest.mark.parametrize(
    "path",
    ["_build", "_build/runs", "_build/runs/book-seed0", "_build/runs/book-seed0/toy"],
)
def test_file_in_the_way(inside, capsys: pytest.CaptureFixture[str], path: str) -> None:
    inside.notebook("toy/one", "raise SystemError('this must not run')")
    inside.write(path, "in the way")
    assert main(["reproduce"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("implicitreg: cannot write to _build/runs/book-seed0")
    assert err.count("\n") == 1


@pytest.mark.parametrize("path", ["toy/one.ipynb", "toy/one.failed.ipynb", "claims.json", "log.txt", ".lock"])
def test_folder_in_the_way(inside, capsys: pytest.CaptureFixture[str], path: str) -> None:
    inside.notebook("toy/one", "raise SystemError('this must not run')")
    inside.write(f"_build/runs/book-seed0/{path}/file", "in the way")
    assert main(["reproduce"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("implicitreg: cannot write to _build/runs/book-seed0")
    assert err.count("\n") == 1


def test_outside_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("reproduce", "verdicts", "render", "record", "diff a b", "--list"):
        assert main(command.split()) == 2
        err = capsys.readouterr().err
        assert err.startswith("implicitreg: no project here")
        assert err.count("\n") == 1


def test_missing_device(inside, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    inside.notebook("toy/one")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["reproduce", "--device", "cuda"]) == 2
    assert capsys.readouterr().err == "implicitreg: device 'cuda': there is none on this machine\n"


def test_nothing_to_run(inside, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("reproduce", "reproduce toy", "record"):
        assert main(command.split()) == 2
        assert "there is no notebook in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "told"),
    [('scale = "book"\nseed = 0', "no parameter 'device'"), ("", "no parameter 'scale'")],
)
def test_notebook_without_the_standard_parameters(
    inside, capsys: pytest.CaptureFixture[str], source: str, told: str
) -> None:
    inside.notebook("toy/one", parameters=source)
    assert main(["reproduce"]) == 1
    assert told in capsys.readouterr().err


def test_malformed_inputs_are_one_line(inside, capsys: pytest.CaptureFixture[str]) -> None:
    inside.write("book/toy/one.ipynb", "{half")
    assert main(["reproduce"]) == 1
    assert capsys.readouterr().err == "implicitreg: book/toy/one.ipynb is not a notebook that can be read\n"
    inside.notebook("toy/one")
    inside.write("book/toy/claims.yml", "paper: toy\n")
    assert main(["verdicts", "recorded"]) == 1
    err = capsys.readouterr().err
    assert "claims.yml" in err
    assert err.count("\n") == 1


def test_a_real_process_says_one_line(toy) -> None:
    toy.notebook("toy/one")
    done = toy.run("reproduce", "nosuch")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "implicitreg: unknown chapter or notebook 'nosuch'; chapters: toy; notebooks: toy/one\n"


def test_ascii_terminal(toy) -> None:
    toy.notebook("toy/one")
    done = toy.run("verdicts", env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "40"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "not run" in done.stdout


def test_answers_come_without_heavy_imports() -> None:
    heavy = {"torch", "papermill", "nbformat", "nbclient", "scipy", "numpy", "IPython"}
    script = (
        "import sys; from implicitreg.reproduce.cli import main\n"
        "main(['--help']); main(['reproduce', 'nosuch']); main(['reproduce', '--scale', 'huge'])\n"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_version_and_list(inside, capsys: pytest.CaptureFixture[str]) -> None:
    from implicitreg import __version__

    inside.notebook("toy/one")
    assert main([]) == main(["--help"]) == main(["reproduce", "--help"]) == 0
    assert "reproduce" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"implicitreg {__version__}\n"
    assert main(["--list"]) == main(["reproduce", "--list"]) == 0
    assert capsys.readouterr().out == 2 * "toy\n    toy/one\n"
