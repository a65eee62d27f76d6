"""Seconds and memory: declared, told beforehand, and held to."""

from pathlib import Path
from typing import Any

import pytest

from implicitreg.claims import SCALES, load_chapters
from implicitreg.reproduce import environment, runner
from implicitreg.reproduce.cli import main
from implicitreg.reproduce.progress import Forecast

BOOK = Path(__file__).parents[3] / "book"


def _declare(toy: Any, **costs: str) -> None:
    claims = toy.root / "book/toy/claims.yml"
    lines = "".join(f"  {name}: {cost}\n" for name, cost in costs.items())
    claims.write_text(f"notebooks:\n{lines}{claims.read_text()}")


def test_every_notebook_of_the_book_declares_what_it_costs_at_every_scale() -> None:
    for chapter, file in load_chapters(BOOK).items():
        names = {path.stem for path in (BOOK / chapter).glob("*.ipynb")}
        assert set(file.notebooks) == names
        for cost in file.notebooks.values():
            assert set(cost.seconds) == set(cost.memory) == set(SCALES)
            assert 100 < min(cost.memory.values()) <= max(cost.memory.values()) < 20_000


def test_the_memory_of_this_machine() -> None:
    told = environment.memory()
    assert told is not None
    assert 0 < told[1] <= told[0]


@pytest.mark.parametrize(
    ("whole", "free", "status", "said"),
    [
        (
            1000.0,
            900.0,
            2,
            "implicitreg: toy/two needs about 1,200 MB of memory at this scale, this machine has 1,000: ",
        ),
        (
            4000.0,
            1500.0,
            0,
            "implicitreg: note: 2 workers may need 2,000 MB of memory together, 1,500 are free: "
            "--workers 1 needs 1,200\n",
        ),
        (4000.0, 3000.0, 0, ""),
    ],
)
def test_memory_that_does_not_suffice(
    inside: Any, capsys: Any, monkeypatch: Any, whole: float, free: float, status: int, said: str
) -> None:
    cost = "{{seconds: {{book: 5}}, memory: {{book: {}}}}}"
    _declare(inside, one=cost.format(800), two=cost.format(1200))
    inside.notebook("toy/one", records="toy.big")
    inside.notebook("toy/two")
    monkeypatch.setattr(runner, "memory", lambda: (whole, free))
    assert main(["reproduce", "--workers", "2"]) == status
    err = capsys.readouterr().err
    assert said in err
    assert said or "memory" not in err
    assert inside.executed("toy/one").exists() == (status == 0)


def test_a_run_says_how_long_it_will_take(inside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _declare(inside, one="{seconds: {book: 600}}", two="{seconds: {book: 1200}}")
    inside.notebook("toy/one", records="toy.big")
    inside.notebook("toy/two")
    assert main(["reproduce", "--workers", "2"]) == 0
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "about 20 min for 2 notebooks"
    assert any(line.endswith(" left") for line in rest)
    # What it took is a better guide than what was declared.
    assert main(["reproduce", "--workers", "2", "--fresh"]) == 0
    assert capsys.readouterr().err.splitlines()[0].endswith(" s for 2 notebooks")
    assert main(["reproduce"]) == 0
    assert "about" not in capsys.readouterr().err


def test_the_forecast() -> None:
    now = [0.0]
    forecast = Forecast({"a": 100.0, "b": 40.0, "c": 60.0}, 2, lambda: now[0])
    assert forecast.left() == 100
    forecast.begin("a")
    forecast.begin("b")
    now[0] = 20.0
    assert forecast.left() == 80
    forecast.finish("b", 20.0)  # twice as fast as expected
    assert forecast.left() == pytest.approx(30)
    now[0] = 1000.0  # nothing is ever expected to have ended before it began
    assert forecast.left() == pytest.approx(30)
    assert Forecast({"a": None, "b": 3.0}, 1).left() is None
    assert Forecast({}, 1).left() == 0


def test_a_notebook_that_takes_far_too_long_fails_a_timed_run(inside: Any, capsys: Any) -> None:
    _declare(inside, one="{seconds: {book: 0.1}}", two="{seconds: {book: 60}}")
    inside.notebook("toy/one", records="toy.big")
    inside.notebook("toy/two")
    assert main(["reproduce"]) == 0
    capsys.readouterr()
    for arguments in (["--timed"], ["--timed", "--fresh"]):  # what was executed before is held to it too
        assert main(["reproduce", *arguments]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("implicitreg: toy/one took ")
        assert said.endswith(" s, more than 3 times the 0.1 s of book/toy/claims.yml")
        assert inside.executed("toy/one").exists()
