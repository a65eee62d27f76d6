"""Runs as readers meet them: the default, verdicts, differences, and the book's sources."""

import json
from pathlib import Path
from typing import Any

import pytest

from implicitreg.reproduce import rendering, runs
from implicitreg.reproduce.cli import main
from implicitreg.reproduce.fingerprint import fingerprint, seal, surroundings
from implicitreg.reproduce.planning import Settings
from implicitreg.reproduce.project import Project
from implicitreg.reproduce.storage import to_json

MIME = "application/vnd.implicitreg.claim+json"


def _recorded(toy: Any, value: float, scale: str = "book") -> dict[str, Any]:
    """Return the notebook with an output that records a value."""
    content = json.loads((toy.root / "book/toy/one.ipynb").read_text())
    evidence = {"id": "toy.big", "scale": scale, "samples": [value] * 2, "control": [-value] * 2}
    table = {"text/html": "<table></table>", "text/plain": str(value)}
    cell = content["cells"][-1]
    cell["outputs"] = [{"output_type": "display_data", "data": table, "metadata": {MIME: evidence}}]
    cell["metadata"]["papermill"] = {"duration": 1.23456}
    return content


@pytest.fixture
def made(inside: Any) -> Any:
    """Return a function that makes a run without executing anything."""
    inside.notebook("toy/one", "print(1)")
    project = Project(inside.root)
    notebook = project.notebooks["toy/one"]

    def make(value: float, scale: str = "book", seed: int = 0) -> Path:
        settings = Settings(scale, seed)
        content = _recorded(inside, value, scale)
        prints = fingerprint(notebook, content, settings.parameters, surroundings(project))
        seal(content, prints, settings.parameters)
        inside.write(f"_build/runs/{settings.name}/toy/one.ipynb", to_json(content))
        claims = {"environment": {"cpu": "toy", **settings.parameters}, "claims": []}
        return inside.write(f"_build/runs/{settings.name}/claims.json", to_json(claims)).parent

    return make


def test_slug() -> None:
    assert runs.slug("book", 0, {}) == runs.DEFAULT == "book-seed0"
    assert runs.slug("smoke", 1, {"depth": 4, "a": "x/../y"}) == "smoke-seed1-a=x_.._y-depth=4"


def test_default_is_the_run_then_the_recorded_notebooks(inside: Any, made: Any, capsys) -> None:
    inside.write("book/toy/one.ipynb", to_json(_recorded(inside, 50.0)))
    assert main(["verdicts"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("recorded, scale book\n")
    assert "50" in out
    made(60.0)
    assert main(["verdicts"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("book-seed0, scale book\n")
    assert "60" in out
    assert err == ""
    inside.write("lib/toylib.py", "ANSWER = 43\n")
    assert main(["verdicts"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("recorded, scale book\n")
    assert err == (
        "implicitreg: note: book-seed0 is out of date (changed since: toy/one: library); "
        "showing the recorded notebooks instead\n"
    )
    assert main(["verdicts", "book-seed0"]) == 0
    out, err = capsys.readouterr()
    assert "60" in out
    assert err == "implicitreg: note: book-seed0 is out of date (changed since: toy/one: library)\n"


def test_verdicts_follow_from_evidence_and_rule(inside: Any, made: Any, capsys) -> None:
    made(60.0)
    claims = (inside.root / "book/toy/claims.yml").read_text()
    inside.write("book/toy/claims.yml", claims.replace("at_least, value: 40.0", "at_most, value: 40.0"))
    assert main(["verdicts", "book-seed0", "--json"]) == 0
    (claim,) = json.loads(capsys.readouterr().out)["claims"]
    assert (claim["verdict"], claim["expected"]) == ("unguarded", "reproduced")
    assert main(["verdicts", "book-seed0"]) == 0
    out = capsys.readouterr().out
    assert "accepted" in out
    assert "not as expected: toy.big" in out


def test_verdicts_as_json_are_claims_json(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(60.0, "smoke", 3)
    for name in ("smoke-seed3", str(folder), "_build/runs/smoke-seed3"):
        assert main(["verdicts", name, "--json"]) == 0
        content = json.loads(capsys.readouterr().out)
        assert content["environment"] == {"cpu": "toy", "scale": "smoke", "seed": 3, "device": "auto"}
        (claim,) = content["claims"]
        assert (claim["notebook"], claim["seconds"], claim["verdict"]) == ("toy/one", 1.235, "reproduced")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (60.0, "no value moved; no verdict changed"),
        (60.0 * (1 + 1e-13), "no value moved; no verdict changed"),
        (61.0, "1 of 1 claims moved; no verdict changed"),
        (30.0, "1 of 1 claims moved; verdicts changed: toy.big"),
    ],
)
def test_diff(made: Any, capsys: pytest.CaptureFixture[str], value: float, told: str) -> None:
    made(60.0)
    made(value, "smoke", 1)
    assert main(["diff", "book-seed0", "smoke-seed1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == told
    assert max(map(len, lines)) <= 80
    assert main(["diff", "recorded", "book-seed0"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 1 claims moved; no verdict changed"


def test_unfinished_run_can_be_judged(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (made(60.0, "smoke", 3) / "claims.json").unlink()
    assert main(["verdicts", "smoke-seed3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["environment"]["scale"] == "smoke"


def test_stage_of_a_run(inside: Any, made: Any) -> None:
    made(60.0)
    inside.notebook("toy/two", "print(2)")
    inside.write("_build/stage/book/left.md", "from an older build")
    inside.write("evidence/book/claims.json", "{}")
    inside.write("book/.ipynb_checkpoints/x.md", "x")
    project = Project(inside.root)
    stage = rendering.stage(project, runs.find(project, "book-seed0"))
    files = {path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()}
    assert files == {
        "_config.yml",
        "_toc.yml",
        "book/index.md",
        "book/toy/claims.yml",
        "book/toy/one.ipynb",
        "book/toy/two.ipynb",
        "claims.json",
        "evidence/book/claims.json",
    }
    assert (stage / "book/toy/one.ipynb").read_bytes() == inside.executed("toy/one").read_bytes()
    assert (stage / "book/index.md").stat().st_mtime_ns == (inside.root / "book/index.md").stat().st_mtime_ns
    content = json.loads((stage / "claims.json").read_text())
    assert (content["environment"]["cpu"], content["claims"][0]["verdict"]) == ("toy", "reproduced")


def test_stage_of_the_recorded_notebooks(inside: Any, made: Any) -> None:
    made(60.0)
    project = Project(inside.root)
    stage = rendering.stage(project, runs.find(project, "recorded"))
    assert (stage / "book/toy/one.ipynb").read_bytes() == (inside.root / "book/toy/one.ipynb").read_bytes()
    assert not (stage / "claims.json").exists()


@pytest.mark.parametrize("path", ["_build", "_build/stage", "_build/render.log/file"])
def test_render_where_something_is_in_the_way(inside: Any, capsys: pytest.CaptureFixture[str], path: str) -> None:
    inside.notebook("toy/one")
    inside.write(path, "in the way")
    assert main(["render"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("implicitreg: cannot write to _build")
    assert err.count("\n") == 1


def test_render(inside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    inside.notebook("toy/one", "print(1)")
    inside.write("_toc.yml", "format: jb-book\nroot: book/index\nchapters:\n  - file: book/toy/one\n")
    inside.write("_config.yml", 'title: Toy\nonly_build_toc_files: true\nexecute: {execute_notebooks: "off"}\n')
    assert main(["render"]) == 0
    page = inside.root / "_build/html/index.html"
    assert capsys.readouterr().out == f"recorded: {page.as_uri()}\n"
    assert page.exists()
    assert (inside.root / "_build/html/book/toy/one.html").exists()
    index = inside.root / "_build/html/searchindex.js"
    assert index.exists()

    inside.write("book/index.md", "# Toy\n\n[nowhere](nowhere.md)\n")
    assert main(["render"]) == 1
    # Half a site must not be taken for a whole one.
    assert not index.exists()
    err = capsys.readouterr().err
    assert "nowhere" in err
    assert err.splitlines()[-1] == "implicitreg: the book was not built; the whole log: _build/render.log"
    assert "Traceback" not in err
