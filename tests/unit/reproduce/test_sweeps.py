"""Cells of work: what they depend on, how they are stored, and that they are computed once."""

import functools
import io
import json
import multiprocessing
import pickle
import types
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from implicitreg.reproduce import sweeps
from implicitreg.reproduce.cli import main
from implicitreg.reproduce.sweeps import cell_key, decode, encode, plain, read_cell, sweep, write_cell


def notebook(source: str) -> dict[str, Any]:
    """Return the names that the cells of a notebook define."""
    names: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(compile(source, "cell", "exec"), names)
    return names


def key(source: str, function: str = "f", **settings: Any) -> str:
    return cell_key(notebook(source)[function], settings)


# ---------------------------------------------------------------------------------------------------------------------
# The hash


FIT = """\
import torch
from implicitreg.nets import gaussian_weights
run = {"lr": 0.1, "widths": (4, 8), "draw": lambda: 3}
start = torch.arange(3.0)
def helper(x):
    return x + run["lr"]
def f(width, labels=helper):
    '''Train.'''
    return [helper(w) for w in range(width)] + [start.sum()]
other = 1
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.1", "0.2"),  # a constant in what it uses
        ("(4, 8)", "(4, 9)"),
        ("lambda: 3", "lambda: 4"),
        ("arange(3.0)", "arange(4.0)"),
        ("arange(3.0)", "arange(3)"),
        ("x + run", "x - run"),  # the code of what it calls
        ("start.sum()", "start.prod()"),
        ("for w in range(width)", "for w in range(width + 1)"),  # code within the code
        ("labels=helper", "labels=None"),
        ("import torch", "import torch as t, torch"),
    ],
)
def test_the_key_changes_with_whatever_the_result_depends_on(old: str, new: str) -> None:
    assert old in FIT
    changed = key(FIT.replace(old, new), width=3) != key(FIT, width=3)
    assert changed == (old != "import torch")  # a name that is not used is no dependence


@pytest.mark.parametrize(
    ("old", "new"), [("other = 1", "other = 2"), ("\ndef f", "\n\n\n# a remark\ndef f"), ("# ", "## ")]
)
def test_the_key_stays_with_what_does_not_matter(old: str, new: str) -> None:
    assert key(FIT.replace(old, new), width=3) == key(FIT, width=3)


def test_the_key_changes_with_the_arguments_and_the_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        key(FIT, width=3),
        key(FIT, width=4),
        key(FIT, width=3.0),
        key(FIT, width="3"),
        key(FIT, width=(3,)),
        key(FIT, width=[3]),
        key(FIT, width={"a": 3}),
        key(FIT, width=True),
        key(FIT, width=None),
        key(FIT, width=np.arange(3)),
        key(FIT, width=torch.arange(3)),
        key(FIT, width=torch.float64),
        key(FIT, other=3),
        key(FIT, width=notebook(FIT)["helper"]),
        key(FIT, width=functools.partial(abs)),
        key(FIT, width=torch.zeros),
    }
    monkeypatch.setenv(sweeps.SURROUNDINGS, "another library")
    keys.add(key(FIT, width=3))
    assert len(keys) == 17


def test_recursion_closures_and_functions_of_the_library_have_keys() -> None:
    source = "def outer(k):\n    def f(n):\n        return 1 if n == 0 else k * f(n - 1)\n    return f\nf = outer({})"
    assert key(source.format(2), n=3) != key(source.format(3), n=3)
    assert key("from implicitreg.nets import outputs as f") != key("from implicitreg.nets import gaussian_weights as f")


def test_a_module_beside_the_notebook_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its content is in no hash, and elsewhere it cannot be imported."""
    (tmp_path / "beside.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TypeError, match="'beside', which f\\(\\) uses, is a module"):
        key("import beside\ndef f():\n    return beside.x")


def test_sets_of_constants_have_keys() -> None:
    assert key("def f(x):\n    return x in {1, 'a', None}", x=1) != key(
        "def f(x):\n    return x in {1, 'b', None}", x=1
    )


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("torch.Generator()", "'thing', which f() uses, is a Generator"),
        ("__import__('sys').__stdout__", "'thing', which f() uses, is a TextIOWrapper"),
        ("{'a': [iter(())]}", "'thing', which f() uses,['a'][0] is a tuple_iterator"),
        ("type('Own', (), {})()", "is a Own"),
    ],
)
def test_what_cannot_be_hashed_is_named(value: str, named: str) -> None:
    with pytest.raises(TypeError, match="cannot use: allowed are numbers") as caught:
        key(f"import torch\nthing = {value}\ndef f():\n    return thing")
    assert named in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# What is stored


DATA = {
    "tensors": [torch.arange(3.0), (torch.tensor([True]), torch.zeros(0, dtype=torch.int64))],
    1: None,
    (2, "x"): {"pi": 3.14, "yes": True, "text": "ζ"},
}


def test_plain_data_come_back_as_they_were() -> None:
    back = decode(encode(DATA))
    assert back.keys() == DATA.keys()
    assert torch.equal(back["tensors"][0], DATA["tensors"][0])
    assert isinstance(back["tensors"][1], tuple)
    assert back["tensors"][1][1].dtype == torch.int64
    assert back[2, "x"] == DATA[2, "x"]


def test_a_part_of_a_tensor_is_stored_without_the_rest() -> None:
    assert len(encode(torch.zeros(100_000)[:3])) < 4_000
    parameter = torch.nn.Parameter(torch.ones(2))
    assert type(plain(parameter)) is torch.Tensor
    assert not plain(parameter * 2).requires_grad


@dataclass
class Own:
    x: int


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"a": [Own(1)]}, r"\['a'\]\[0\] is a Own"),
        (types.SimpleNamespace(a=1), "is a SimpleNamespace"),
        (np.float64(1), "is a float64"),
        (iter(()), "is a tuple_iterator"),
    ],
)
def test_what_cannot_be_stored_is_named(value: Any, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        sweep(lambda: value, [{}])


def test_nothing_in_a_stored_cell_is_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    buffer = io.BytesIO()
    torch.save(Trap(), buffer)
    with pytest.raises(pickle.UnpicklingError):
        decode(buffer.getvalue())
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw[:50] + b"!" + raw[51:], lambda raw: b""])
def test_a_damaged_cell_is_none(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_cell(tmp_path, "a", encode(1))
    write_cell(tmp_path, "b", encode(2))
    path = tmp_path / "a.cell"
    path.write_bytes(damage(path.read_bytes()))
    assert read_cell(tmp_path, "a") is None
    assert sweeps.set_aside_damaged(tmp_path) == ["a.cell"]
    assert sweeps.set_aside_damaged(tmp_path) == []
    assert decode(read_cell(tmp_path, "b") or b"") == 2


# ---------------------------------------------------------------------------------------------------------------------
# A sweep


def test_cells_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []

    def double(x: int) -> torch.Tensor:
        called_here.append(x)
        return torch.tensor(2.0 * x)

    # As a notebook would not: what is called is noted outside of what is hashed.
    called_here = called
    monkeypatch.setattr(sweeps, "cell_key", lambda function, settings: f"{settings['x']:064d}")
    settings = [{"x": 1}, {"x": 2}, {"x": 1}]
    assert sweep(double, settings) == [2, 4, 2]
    assert called == [1, 2]  # the same setting twice is one cell, stored or not
    monkeypatch.setenv(sweeps.CELLS, str(tmp_path))
    assert sweep(double, settings) == [2, 4, 2]
    assert sweep(double, [*settings, {"x": 3}]) == [2, 4, 2, 6]
    assert called == [1, 2, 1, 2, 3]
    (tmp_path / f"{1:064d}.cell").write_bytes(b"damaged")
    assert sweep(double, settings) == [2, 4, 2]
    assert called == [1, 2, 1, 2, 3, 1]


class Counting(Executor):
    """Does the work here and now."""

    def __init__(self) -> None:
        self.submitted = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        self.submitted += 1
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def test_an_executor_computes_the_same_elsewhere() -> None:
    names = notebook(
        "import torch, os\n"
        "scale = torch.tensor(3.0, dtype=torch.float64)\n"
        "def f(n, seed):\n"
        "    print('not an answer')\n"
        "    g = torch.Generator().manual_seed(seed)\n"
        "    return {'x': torch.randn(n, n, generator=g, dtype=torch.float64) @ torch.ones(n).double() * scale,\n"
        "            'pid': os.getpid()}"
    )
    settings = [{"n": 50, "seed": s} for s in (0, 1)]
    counting = Counting()
    here, there = sweep(names["f"], settings), sweep(names["f"], settings, executor=counting)
    assert counting.submitted == 2
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a["x"], b["x"])
        assert a["pid"] != b["pid"]


def test_a_cell_that_fails_or_dies_elsewhere_is_one_line() -> None:
    names = notebook("import os\ndef f(how):\n    return 1 / 0 if how == 'fail' else os._exit(3)")
    for how, said in (("fail", "ZeroDivisionError: division by zero"), ("die", r"its process died")):
        with pytest.raises(RuntimeError, match=said):
            sweep(names["f"], [{"how": how}], executor=Counting())


def test_a_real_pool_and_a_cell_that_hangs() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert sweep(round, [{"number": 2.4}, {"number": 3}], executor=pool) == [2, 3]
    names = notebook("import time\ndef f():\n    time.sleep(60)")
    done = sweeps.compute(sweeps.Cell(sweeps._payload(names["f"], {}), timeout=2.0))
    assert done.error == "it took longer than 2 s (--cell-timeout)"


def test_names_that_torch_has_too_do_no_harm() -> None:
    """With the function goes every loaded module that a name in it could mean, and some of torch's are odd ones."""
    names = notebook("import torch\nclass_count = 3\ndef f(x):\n    return x.classes + x.ops + torch.ones(()).item()")
    names["f"].__globals__["x"] = None
    payload = sweeps._payload(names["f"], {"x": 1})
    done = sweeps.compute(sweeps.Cell(payload))
    assert done.error == "AttributeError: 'int' object has no attribute 'classes'"


def test_what_carries_too_much_is_refused() -> None:
    names = notebook("import torch\nbig = torch.zeros(5_000_000, dtype=torch.float64)\ndef f():\n    return big.sum()")
    with pytest.raises(ValueError, match=r"f\(\) carries 40 MB of data along, more than 34"):
        sweep(names["f"], [{}], executor=Counting())


@pytest.mark.parametrize("settings", [{"x": 1}, [1], [("x", 1)]])
def test_settings_are_mappings(settings: Any) -> None:
    with pytest.raises(TypeError, match="settings must be a sequence of mappings"):
        sweep(abs, settings)


# ---------------------------------------------------------------------------------------------------------------------
# In a run


SWEEP = """\
from implicitreg.reproduce.sweeps import sweep
import pathlib, torch
log = pathlib.Path("../../log")
def work(x):
    with open("{log}", "a") as file:
        file.write(f"{{x}}\\n")
    return torch.tensor(float(x + seed))
first = sweep(work, [{{"x": x}} for x in range(3)])
second = sweep(work, [{{"x": 10 + int(first[2])}}, {{"x": 1}}])
print([float(x) for x in first + second])
"""


@pytest.mark.parametrize("scale", ["book", "paper"])
def test_a_notebook_with_sweeps(inside: Any, capsys: pytest.CaptureFixture[str], scale: str) -> None:
    log = inside.root / "computed"
    inside.notebook("toy/one", SWEEP.format(log=log), "note = 1", records="toy.big")
    assert main(["reproduce", "--scale", scale]) == 0, capsys.readouterr().err
    executed = inside.executed("toy/one", f"{scale}-seed0")
    content = json.loads(executed.read_text())
    assert "[0.0, 1.0, 2.0, 12.0, 1.0]" in json.dumps(content)
    assert sorted(log.read_text().split()) == ["0", "1", "12", "2"]
    cost = content["metadata"]["implicitreg"]["cost"]
    assert 0 < cost["seconds"] < 60
    assert 50 < cost["memory"] < 2000

    # What the sweep does not use may change; what is no longer asked for is forgotten.
    inside.notebook("toy/one", SWEEP.format(log=log), "note = 2", records="toy.big")
    assert main(["reproduce", "--scale", scale]) == 0
    assert len(log.read_text().split()) == 4
    cells = inside.root / f"_build/runs/{scale}-seed0/.cells/toy/one"
    assert len(list(cells.glob("*.cell"))) == 4
    inside.notebook("toy/one", SWEEP.format(log=log).replace("range(3)", "range(3, 6)"), records="toy.big")
    assert main(["reproduce", "--scale", scale]) == 0
    assert sorted(log.read_text().split()[4:]) == ["15", "3", "4", "5"]
    assert len(list(cells.glob("*.cell"))) == 5  # 3, 4, 5, 15 and 1
    assert not list(cells.glob("*.task"))
    assert main(["reproduce", "--scale", scale, "--fresh"]) == 0
    assert len(log.read_text().split()) == 13


def test_a_cell_that_fails_fails_its_notebook(inside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source = "def f(x):\n    return 1 / x\nsweep(f, [{'x': x} for x in (1, 0)])"
    source = f"from implicitreg.reproduce.sweeps import sweep\n{source}"
    inside.notebook("toy/one", source)
    inside.notebook("toy/two", records="toy.big")
    assert main(["reproduce", "--scale", "paper"]) == 1
    err = capsys.readouterr().err
    assert "implicitreg: toy/one failed in a cell of its sweep: ZeroDivisionError: division by zero" in err
    assert inside.executed("toy/two", "paper-seed0").exists()


def test_what_failed_is_no_result_of_a_fresh_run(inside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source = "import pathlib\nfrom implicitreg.reproduce.sweeps import sweep\n"
    source += "root = str(pathlib.Path('../..').resolve())\n"
    source += "def f(x):\n    import pathlib\n    return 1 / (0 if pathlib.Path(root, 'bad').exists() else x)\n"
    inside.notebook("toy/one", source + "sweep(f, [{'x': 1}])", records="toy.big")
    assert main(["reproduce", "--scale", "paper"]) == 0
    inside.write("bad", "")
    assert main(["reproduce", "--scale", "paper", "--fresh"]) == 1
    assert "1 not run" in capsys.readouterr().out
    assert not inside.executed("toy/one", "paper-seed0").exists()


def test_a_sweep_that_never_asks_for_the_same_cells_ends(inside: Any, capsys: Any, monkeypatch: Any) -> None:
    from implicitreg.reproduce import runner

    monkeypatch.setattr(runner, "_ROUNDS", 2)
    source = "import time\nfrom implicitreg.reproduce.sweeps import sweep\nsweep(round, [{'number': time.time()}])"
    inside.notebook("toy/one", source)
    assert main(["reproduce", "--scale", "paper"]) == 1
    assert "its sweeps asked 2 times for cells that were not there" in capsys.readouterr().err


def test_another_machine_gets_the_cells_and_gives_back_its_own(inside: Any) -> None:
    from implicitreg.reproduce import planning, runner
    from implicitreg.reproduce.execution import execute
    from implicitreg.reproduce.project import Project

    log = inside.root / "computed"
    inside.notebook("toy/one", SWEEP.format(log=log), records="toy.big")

    class Elsewhere(Counting):
        """Executes where the run's folder is not to be seen."""

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
            if fn is execute:
                from dataclasses import replace

                args = (replace(args[0], cells="/nowhere/at/all", folder="/nowhere"),)
            return super().submit(fn, *args, **kwargs)

    project = Project(inside.root)
    for scale in ("book", "paper"):
        plan = planning.Plan(project, project.resolve([]), planning.Settings(scale))
        report = runner.reproduce(plan, executor=Elsewhere())
        assert [r.state for r in report.results] == ["executed"], report.complaints
        assert len(list((report.folder / ".cells/toy/one").glob("*.cell"))) == 4
    assert len(log.read_text().split()) == 8
