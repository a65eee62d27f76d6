"""What moves between two executions is found, number by number, and what stays is not."""

from typing import Any

import pytest

from implicitreg.reproduce.cli import main
from implicitreg.reproduce.verifying import _NUMBER, printed


def _notebook(*texts: str, **figure: str) -> dict[str, Any]:
    outputs = [[{"output_type": "stream", "name": "stdout", "text": text}] for text in texts]
    cells = [{"cell_type": "code", "metadata": {}, "outputs": output} for output in outputs]
    if figure:
        shown = {"output_type": "display_data", "data": {"image/png": "x"}, "metadata": {"image/png": figure}}
        cells.append({"cell_type": "code", "metadata": {}, "outputs": [shown]})
    return {"cells": cells, "metadata": {}}


def test_numbers_are_found_in_text() -> None:
    text = "w11 = 1.5, −2 and 3e-4 (95 %), 1,797 samples, h2 .5 [7] x^2"
    assert _NUMBER.findall(text) == ["1.5", "−2", "3e-4", "95", "1,797", ".5", "7", "2"]


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("loss 1.25 at 3", "loss 1.25 at 3", []),
        ("loss 1.25 at 3", "loss 1.26 at 3", [(1, "1.25", "1.26")]),
        ("a 1 b 2", "a 2 b 1", [(1, "1", "2"), (1, "2", "1")]),
        ("same\nreproduced 1", "same\ndiffers 1", [(1, "reproduced 1", "differs 1")]),
        ("a 1", "a 1\nb", [(1, "", "b")]),
    ],
)
def test_what_differs_is_listed(before: str, after: str, found: list[tuple[int, str, str]]) -> None:
    moved, compared = printed("toy/one", _notebook(before), _notebook(after))
    assert [(each.cell, each.before, each.after) for each in moved] == found
    assert compared == len(_NUMBER.findall(before))


def test_words_of_figures_count_and_pictures_do_not() -> None:
    before, after = (_notebook("x", alt=f"falls to {end}", caption="c", name="n") for end in (3, 4))
    after["cells"][1]["outputs"][0]["data"]["image/png"] = "y"
    moved, _ = printed("toy/one", before, after)
    assert [(each.cell, each.before, each.after) for each in moved] == [(2, "3", "4")]


def test_pieces_of_one_stream_are_no_difference() -> None:
    before, after = _notebook("one 1\ntwo 2\n"), _notebook("one 1\ntwo 2\n")
    pieces = [{"output_type": "stream", "name": "stdout", "text": text} for text in ("one 1\ntw", "o 2\n")]
    after["cells"][0]["outputs"] = pieces
    assert printed("toy/one", before, after) == ([], 2)


def test_an_output_that_is_missing_is_a_difference() -> None:
    moved, _ = printed("toy/one", _notebook("a", "b"), _notebook("a"))
    assert [(each.cell, each.before, each.after) for each in moved] == [(2, "b", "")]


def test_verify_on_the_command_line(inside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    inside.notebook("toy/one", "print(6 * 7)", records="toy.big")
    assert main(["verify", "--twice"]) == 0
    out = capsys.readouterr().out
    for other in ("second", "plain code path"):
        assert f"first and {other}: 0 of 2 printed numbers differ; 0 claims moved; no verdict changed" in " ".join(
            out.split()
        )
    assert main(["verify", "--scale", "smoke"]) == 2
    assert "give --twice" in capsys.readouterr().err
    assert main(["verify"]) == 1  # nothing is recorded yet
    assert main(["record"]) == 0
    capsys.readouterr()
    assert main(["verify"]) == 0
    assert "recorded and executed: 0 of 2 printed numbers differ" in " ".join(capsys.readouterr().out.split())


def test_verify_finds_what_moves(inside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    # A notebook that prints another number, and measures another one, each time.
    inside.notebook(
        "toy/one",
        "import os, pathlib\n"
        "place = pathlib.Path('../../count'); n = int(place.read_text()) + 1 if place.exists() else 0\n"
        "place.write_text(str(n)); print('run', n)\n"
        "print('plain' if os.environ.get('ATEN_CPU_CAPABILITY') == 'default' else 'fast')\n"
        "import toylib; toylib.ANSWER = 60 + n if n < 2 else 1",
        records="toy.big",
    )
    assert main(["verify", "--twice"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "toy/one 2 0 1" in said
    assert "first and second: 2 of 2 printed numbers differ; 1 claims moved, by 0.02 of their values at most" in said
    assert "reproduced → differs" in said
    assert "verdicts changed: toy.big" in said
    assert "fast" in said
    assert "plain" in said


def test_nothing_is_compared_where_a_notebook_fails(inside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    inside.notebook("toy/one", "1 / 0")
    assert main(["verify", "--twice"]) == 1
    assert "nothing to compare: toy/one failed in cell 2: ZeroDivisionError" in capsys.readouterr().err
