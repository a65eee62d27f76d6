"""What makes a finished notebook out of date, and what does not."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from implicitreg.reproduce.fingerprint import changes, fingerprint, seal, sealed_parameters, surroundings
from implicitreg.reproduce.project import Project

PARAMETERS = {"scale": "book", "seed": 0, "device": "auto"}


def _prints(toy, parameters: dict[str, Any] | None = None) -> dict[str, str]:
    project = Project(toy.root)
    notebook = project.notebooks["toy/one"]
    return fingerprint(notebook, notebook.read(), parameters or PARAMETERS, surroundings(project))


def _edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Any], None]:
    def apply(toy) -> None:
        path = toy.root / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def _cell(index: int, **fields: Any) -> Callable[[Any], None]:
    return _edit("book/toy/one.ipynb", lambda notebook: notebook["cells"][index].update(fields))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("library", lambda toy: toy.write("lib/toylib.py", "ANSWER = 43\n")),
        ("library", lambda toy: toy.write("lib/deep/new.py", "")),
        ("library", lambda toy: (toy.root / "lib/toylib.py").rename(toy.root / "lib/renamed.py")),
        ("library", lambda toy: (toy.root / "lib/toylib.py").unlink()),
        ("claims", lambda toy: toy.claims("toy", "big", "C02")),
        ("constraints", lambda toy: toy.write("constraints.txt", "pyyaml==6.1\n")),
        ("cells", _cell(2, source="print(2)")),
        ("cells", _cell(0, source="# Another title")),
        ("cells", _cell(2, metadata={"tags": ["raises-exception"]})),
        ("cells", _cell(0, cell_type="raw")),
        ("cells", _edit("book/toy/one.ipynb", lambda notebook: notebook["cells"].pop())),
    ],
)
def test_changed(toy, part: str, change: Callable[[Any], None]) -> None:
    toy.notebook("toy/one", "print(1)")
    before = _prints(toy)
    change(toy)
    assert [name for name, value in _prints(toy).items() if value != before[name]] == [part]


@pytest.mark.parametrize(
    "change",
    [
        lambda toy: toy.write("README.md", "Another readme.\n"),
        lambda toy: toy.write("book/index.md", "# Another title\n"),
        lambda toy: toy.write("lib/__pycache__/toylib.cpython-311.pyc", "x"),
        lambda toy: toy.write("lib/.toylib.py.swp", "x"),
        lambda toy: toy.write("lib/toy.egg-info/PKG-INFO", "x"),
        lambda toy: (toy.root / "lib/toylib.py").touch(),
        lambda toy: toy.notebook("toy/two", "print(2)"),
        _cell(2, outputs=[{"output_type": "stream", "name": "stdout", "text": "7"}], execution_count=7),
        _cell(2, source=["print(", "1)"]),
        _cell(2, metadata={"papermill": {"duration": 3}}),
        _edit("book/toy/one.ipynb", lambda notebook: notebook["metadata"].update(kernelspec={"name": "other"})),
    ],
)
def test_unchanged(toy, change: Callable[[Any], None]) -> None:
    toy.notebook("toy/one", "print(1)")
    before = _prints(toy)
    change(toy)
    assert _prints(toy) == before


def test_parameters(toy) -> None:
    toy.notebook("toy/one")
    before = _prints(toy)
    for other in ({"seed": 1}, {"seed": False}, {"scale": "smoke"}, {"device": "cpu"}, {"depth": 3}):
        assert changes_between(before, _prints(toy, PARAMETERS | other)) == ["parameters"]


def changes_between(before: dict[str, str], after: dict[str, str]) -> list[str]:
    executed: dict[str, Any] = {"metadata": {}}
    seal(executed, before, PARAMETERS)
    return changes(executed, after)


def test_data_and_installed_packages(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.notebook("toy/one")
    before = _prints(toy)
    monkeypatch.setattr("implicitreg.reproduce.fingerprint.data_hashes", lambda: {"mnist": "abc"})
    assert changes_between(before, _prints(toy)) == ["data"]
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    assert changes_between(before, _prints(toy)) == ["constraints", "data"]


def test_seal() -> None:
    executed: dict[str, Any] = {"metadata": {}}
    assert changes(None, {"cells": "a"}) == changes(executed, {"cells": "a"}) == ["not executed yet"]
    assert sealed_parameters(executed) is None
    seal(executed, {"cells": "a", "library": "b"}, PARAMETERS)
    executed = json.loads(json.dumps(executed))
    assert changes(executed, {"cells": "a", "library": "b"}) == []
    assert changes(executed, {"cells": "a", "library": "c"}) == ["library"]
    assert changes(executed, {"cells": "a"}) == ["library"]
    assert sealed_parameters(executed) == PARAMETERS
    for broken in (3, {}, {"fingerprint": "x"}):
        assert changes({"metadata": {"implicitreg": broken}}, {"cells": "a"}) == ["not executed yet"]
