"""What is committed: the same bytes twice, and nothing that could not be the same twice."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from implicitreg.reproduce.cli import main
from implicitreg.reproduce.project import Project
from implicitreg.reproduce.recording import complaints, normalise

CHATTY = "for word in 'abc': print(word, flush=True)\nprint({'x', 'y', 'z'})"


def _files(toy: Any) -> dict[str, bytes]:
    """Return every committed file."""
    found = (path for folder in ("book", "evidence") for path in (toy.root / folder).rglob("*") if path.is_file())
    return {path.relative_to(toy.root).as_posix(): path.read_bytes() for path in found}


def test_recording_twice_changes_no_byte(inside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    inside.notebook("toy/one", CHATTY, "", "1 + 1", records="toy.big")
    before = _files(inside)
    assert main(["record"]) == 0
    assert "changed: book/toy/one.ipynb, evidence/book/claims.json\n" in capsys.readouterr().out
    once = _files(inside)
    assert once.keys() - before.keys() == {"evidence/book/claims.json"}
    assert main(["record", "toy/one"]) == 0
    out, err = capsys.readouterr()
    assert "toy/one  executed in" in err
    assert "changed: none\n" in out
    assert _files(inside) == once

    notebook = json.loads(once["book/toy/one.ipynb"])
    assert notebook["metadata"].keys() == {"kernelspec", "language_info"}
    assert [cell["id"] for cell in notebook["cells"]] == [f"cell-{number}" for number in range(6)]
    assert [cell["metadata"] for cell in notebook["cells"]] == [{}, {"tags": ["parameters"]}, {}, {}, {}, {}]
    code = notebook["cells"][1:]
    assert [cell["execution_count"] for cell in code] == [1, 2, None, 3, 4]
    assert "".join(code[1]["outputs"][0]["text"]).startswith("a\nb\nc\n{")
    assert code[3]["outputs"][0]["execution_count"] == 3

    content = json.loads(once["evidence/book/claims.json"])
    assert "commit" not in content["environment"]
    assert (content["claims"][0]["verdict"], content["claims"][0]["notebook"]) == ("reproduced", "toy/one")
    assert "seconds" not in content["claims"][0]

    # The run is that of scale book, seed 0: there is nothing left to execute for it.
    assert main(["reproduce", "--dry-run"]) == 0
    assert "toy/one  would be reused" in capsys.readouterr().out


def test_a_folder_that_claims_nothing_is_recorded_like_the_others(
    inside: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    inside.write("book/how/claims.yml", "notebooks: {}\n")
    inside.notebook("how/two", "1 + 1")
    inside.notebook("toy/one", records="toy.big")
    assert main(["record", "how"]) == 0
    out = capsys.readouterr().out
    assert "0 claims: none; all as expected; not run: toy\n" in out
    assert "changed: book/how/two.ipynb, evidence/book/claims.json\n" in out
    assert main(["record"]) == 0
    assert "1 claim: 1 reproduced; all as expected" in capsys.readouterr().out
    assert main(["reproduce", "how", "--seed", "1"]) == 0
    assert main(["verdicts", "book-seed1"]) == 0


def test_refused_outputs_change_nothing(inside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    inside.notebook("toy/one", "import sys; print('careful', file=sys.stderr)", "object()", "import os; os.getcwd()")
    before = _files(inside)
    assert main(["record"]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("implicitreg: ")]
    assert said[0] == "implicitreg: toy/one, cell 2: writes to stderr: 'careful'"
    assert said[1].startswith("implicitreg: toy/one, cell 3: shows an address: '<object at 0x")
    assert said[2].startswith("implicitreg: toy/one, cell 4: shows a path of this machine: ")
    assert said[3:] == ["implicitreg: nothing was recorded"]
    assert _files(inside) == before


def test_failing_notebook_changes_nothing(inside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    inside.notebook("toy/one", "print('fine')")
    inside.notebook("toy/two", "1 / 0")
    before = _files(inside)
    assert main(["record"]) == 1
    assert "toy/two failed in cell 2: ZeroDivisionError" in capsys.readouterr().err
    assert _files(inside) == before


def test_own_parameters_must_be_those_of_the_book(inside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    inside.notebook("toy/one", parameters='scale = "smoke"\nseed = 3\ndevice = "auto"')
    assert main(["record"]) == 1
    told = "implicitreg: toy/one: to be recorded, its own parameters must say scale = 'book', seed = 0\n"
    assert capsys.readouterr().err == told
    assert not (inside.root / "_build").exists()


def _code(*outputs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"cell_type": "code", "source": "x", "metadata": {}, "execution_count": 9, "outputs": [*outputs], **fields}


def _notebook(*cells: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {"cells": [*cells], "metadata": metadata, "nbformat": 4, "nbformat_minor": 4}


def _stream(name: str, text: str | list[str]) -> dict[str, Any]:
    return {"output_type": "stream", "name": name, "text": text}


def test_normalise_takes_only_outputs_from_the_executed_copy() -> None:
    original = _notebook(
        {"cell_type": "markdown", "source": "# Title", "metadata": {}},
        _code(metadata={"tags": ["parameters"], "papermill": {"duration": 1}}),
        _code(source=" \n"),
        _code(),
        jupytext={"formats": "ipynb"},
        papermill={"duration": 3},
    )
    executed = copy.deepcopy(original)
    executed["metadata"] = {"implicitreg": {}, "papermill": {}, "language_info": {"version": "3.11.7"}}
    executed["cells"][1].update(id="random", source="changed", metadata={"execution": {}})
    executed["cells"][3]["outputs"] = [
        _stream("stdout", ["a\n", "b"]),
        _stream("stdout", "c"),
        _stream("stderr", "d"),
        _stream("stdout", "e"),
        {"output_type": "execute_result", "execution_count": 17, "data": {"text/plain": "5"}, "metadata": {}},
    ]
    before = copy.deepcopy((original, executed))
    found = normalise("toy/one", original, executed)
    assert (original, executed) == before
    assert found["metadata"].keys() == {"jupytext", "kernelspec", "language_info"}
    assert found["metadata"]["language_info"] == {"name": "python"}
    assert found["nbformat_minor"] == 5
    assert len({cell["id"] for cell in found["cells"]}) == 4
    assert found == normalise("toy/one", original, executed)
    assert found["cells"][1]["source"] == "x"
    assert found["cells"][1]["metadata"] == {"tags": ["parameters"]}
    assert [cell["execution_count"] for cell in found["cells"][1:]] == [1, None, 2]
    assert [output.get("text") for output in found["cells"][3]["outputs"]] == ["a\nbc", "d", "e", None]
    assert found["cells"][3]["outputs"][-1]["execution_count"] == 2


def test_normalise_needs_the_same_cells() -> None:
    with pytest.raises(ValueError, match="zip"):
        normalise("toy/one", _notebook(_code()), _notebook(_code(), _code()))


def _data(**data: Any) -> dict[str, Any]:
    data = {mime.replace("_", "/"): content for mime, content in data.items()}
    return {"output_type": "display_data", "data": data, "metadata": {}}


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (_stream("stdout", "70.7\n"), None),
        (_stream("stdout", "0xff, 0x1f2e, /rooted, ~/home, https://example.org/tmp"), None),
        (_data(text_plain="a figure", image_png="0x1234567/root/"), None),
        (_stream("stderr", "late\nwarning"), "writes to stderr: 'late'"),
        ({"output_type": "error", "ename": "KeyError", "evalue": "x"}, "ends in an error, KeyError: x"),
        (_stream("stdout", "fine\n<C object at 0x7f20b237dee0>"), "shows an address: '<C object at 0x7f20b237dee0>'"),
        (_data(text_html=["<p>", "0X7F20B237DEE0"]), "shows an address"),
        (_stream("stdout", "{home}/x"), "shows a path of this machine"),
        (_stream("stdout", "in '{root}'"), "shows a path of this machine"),
        (_stream("stdout", "file://{root}/x"), "shows a path of this machine"),
        (_data(text_plain="{prefix}/bin/python"), "shows a path of this machine"),
        (_data(**{"application_json": {"path": "{root}/x"}}), "shows a path of this machine"),
        (_data(text_plain="ok") | {"metadata": {"path": "{root}"}}, "shows a path of this machine"),
    ],
)
def test_complaints(toy: Any, output: dict[str, Any], told: str | None) -> None:
    text = json.dumps(output)
    for name, path in {"{home}": Path.home(), "{root}": toy.root, "{prefix}": sys.prefix}.items():
        text = text.replace(name, str(path))
    found = list(complaints(_notebook(_code(json.loads(text))), Project(toy.root)))
    if told is None:
        assert found == []
    else:
        assert len(found) == 1
        assert found[0].startswith(f"cell 9: {told}")


def test_the_claims_of_a_larger_run_are_kept_with_their_samples(
    inside: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    inside.notebook("toy/one", records="toy.big")
    inside.write("book/how/claims.yml", "notebooks: {}\n")
    inside.notebook("how/two", "1 + 1")  # claims nothing
    assert main(["reproduce", "--scale", "paper"]) == 0
    before = _files(inside)
    capsys.readouterr()
    assert main(["keep", "paper-seed0"]) == 0
    assert capsys.readouterr().out == "kept: evidence/paper/toy/claims.json\n"
    assert _files(inside).keys() - before.keys() == {"evidence/paper/toy/claims.json"}
    kept = json.loads(_files(inside)["evidence/paper/toy/claims.json"])
    assert kept["environment"]["scale"] == "paper"
    assert [(claim["id"], claim["verdict"]) for claim in kept["claims"]] == [("toy.big", "reproduced")]
    assert "seconds" not in kept["claims"][0]
    evidence = {"id": "toy.big", "scale": "paper", "samples": [42.0, 42.0], "control": [-42.0, -42.0]}
    assert kept["evidence"] == [evidence]


def test_only_larger_runs_are_kept(inside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    inside.notebook("toy/one", records="toy.big")
    assert main(["reproduce", "--scale", "smoke"]) == 0
    capsys.readouterr()
    assert main(["keep", "smoke-seed0"]) == 2
    assert "smoke-seed0 is of scale smoke: only larger runs are kept" in capsys.readouterr().err
    assert not (inside.root / "evidence/smoke").exists()


def test_what_is_kept_of_other_notebooks_stays(inside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    claims = inside.root / "book/toy/claims.yml"
    first = claims.read_text().partition("claims:\n")[2]
    claims.write_text(claims.read_text() + first.replace("big", "small").replace("C01", "C02"))
    inside.notebook("toy/one", records="toy.big")
    inside.notebook("toy/two", records="toy.small")
    path = inside.root / "evidence/paper/toy/claims.json"
    for name in ("toy/one", "toy/two"):
        assert main(["reproduce", name, "--scale", "paper", "--output", name.replace("/", "-")]) == 0
        assert main(["keep", str(inside.root / name.replace("/", "-") / "paper-seed0")]) == 0
    kept = json.loads(path.read_text())
    assert [entry["id"] for entry in kept["claims"]] == ["toy.small", "toy.big"]
    assert [entry["id"] for entry in kept["evidence"]] == ["toy.small", "toy.big"]
    assert "environment" not in kept["claims"][0]
    assert kept["claims"][1]["environment"]["scale"] == "paper"

    # A claim that is gone, or that another notebook has taken over, is not carried on.
    inside.notebook("toy/two", records="toy.big")
    inside.notebook("toy/one", "1 + 1")
    assert main(["reproduce", "--scale", "paper"]) == 0
    assert main(["keep", "paper-seed0"]) == 0
    kept = json.loads(path.read_text())
    assert [entry["id"] for entry in kept["claims"]] == [entry["id"] for entry in kept["evidence"]] == ["toy.big"]
    path.write_text("{}")
    capsys.readouterr()
    assert main(["keep", "paper-seed0"]) == 1
    assert "is not what implicitreg keeps: mend or delete it" in capsys.readouterr().err
