"""Finding the project, and what a user's words mean there."""

from pathlib import Path

import pytest

from implicitreg.claims import SCALES
from implicitreg.reproduce import project
from implicitreg.reproduce.project import Project, UsageError, parse_notebook


def test_scales_are_those_of_the_claims() -> None:
    assert project.SCALES == SCALES


def test_found_from_any_folder_below(toy) -> None:
    notebook = toy.notebook("toy/one")
    assert Project.find(notebook.parent).root == toy.root
    assert Project.find(toy.root).root == toy.root


def test_not_found_outside(toy) -> None:
    with pytest.raises(UsageError, match=r"_config\.yml"):
        Project.find(toy.root.parent)


def test_chapters_are_folders_with_claims(toy) -> None:
    toy.notebook("toy/one")
    toy.notebook("other/two")  # no claims.yml
    toy.write("book/toy/.hidden.ipynb", "{}")
    found = Project(toy.root)
    assert list(found.chapters) == ["toy"]
    assert list(found.notebooks) == ["toy/one"]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([], ["a/one", "toy/one", "toy/two"]),
        (["book"], ["a/one", "toy/one", "toy/two"]),
        (["toy"], ["toy/one", "toy/two"]),
        (["toy/"], ["toy/one", "toy/two"]),
        (["book/toy"], ["toy/one", "toy/two"]),
        (["toy/two", "a"], ["toy/two", "a/one"]),
        (["toy/two", "toy"], ["toy/two", "toy/one"]),
        (["book/toy/two.ipynb"], ["toy/two"]),
        (["toy/two.ipynb"], ["toy/two"]),
        (["{root}/book/toy/two.ipynb"], ["toy/two"]),
    ],
)
def test_targets(inside, targets: list[str], expected: list[str]) -> None:
    inside.claims("a", "small", "C02")
    for name in ("toy/one", "toy/two", "a/one"):
        inside.notebook(name)
    targets = [target.format(root=inside.root) for target in targets]
    assert [notebook.name for notebook in Project(inside.root).resolve(targets)] == expected


def test_target_relative_to_the_chapter(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy.notebook("toy/one").parent)
    assert [notebook.name for notebook in Project(toy.root).resolve(["one.ipynb"])] == ["toy/one"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"cells": [], "metadata": 3}', '{"cells": [3], "metadata": {}}']
)
def test_what_is_no_notebook(text: str, tmp_path: Path) -> None:
    assert parse_notebook(text) is None
    (tmp_path / "x.ipynb").write_text(text)
    assert project.read_notebook(tmp_path / "x.ipynb") is None
    assert project.read_notebook(tmp_path) is None
