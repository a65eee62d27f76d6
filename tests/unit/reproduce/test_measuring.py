"""The command `measure`: a network out of a file, its checkpoint and its data; every mistake in one line."""

import json
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

from implicitreg import data
from implicitreg.measures import report
from implicitreg.reproduce import measuring
from implicitreg.reproduce.cli import main

SOURCE = """
import torch
from torch import nn

from parts import hidden


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def broken():
    raise ZeroDivisionError("one over none")


def images():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def flat():
    return nn.Linear(64, 10).double()


def words():
    return "a network"


ready = flat()
number = 3
"""


PARSING = """
import argparse

argparse.ArgumentParser().parse_args(["--width"])
"""

RESEARCH = """
from __future__ import annotations

import sys
from dataclasses import dataclass

from torch import nn

assert len(sys.argv) == 1


@dataclass
class Config:
    width: int = 16


print("imported")


def build():
    print("built")
    return nn.Sequential(nn.Linear(64, Config().width), nn.ReLU(), nn.Linear(Config().width, 10))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(SOURCE, "utf-8")
    (tmp_path / "parts.py").write_text("hidden = 8\n", "utf-8")
    (tmp_path / "bad.py").write_text("import torch\nthis is no Python\n", "utf-8")
    (tmp_path / "text.txt").write_text("no code", "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, words):
    """Return exit status, what was printed, and what was complained of."""
    status = main(["measure", *words.split()])
    return status, *capsys.readouterr()


def measured(capsys, words):
    status, out, err = run(capsys, f"{words} --json")
    assert (status, err) == (0, "")
    return {row["name"]: row["value"] for row in json.loads(out)["measured"]}


def test_digits_as_the_library_measures_them(here, capsys):
    found = measured(capsys, "net.py:build --data digits --samples 200 --seed 3 --measures margin,layers")
    images = data.digits(dtype=torch.float32)
    drawn = torch.randperm(1797, generator=torch.Generator().manual_seed(3))[:200]
    expected = report(
        measuring.network("net.py:build"), images.images[drawn], images.labels[drawn], measures=["margin", "layers"]
    )
    assert found == {each.name: each.value for each in expected}


def test_the_table_is_printed(here, capsys):
    status, out, err = run(capsys, "net.py:build --data digits --samples 50 --measures margin")
    assert (status, err) == (0, "")
    assert "Sequential of 610 parameters on 50 samples" in out
    assert "margin" in out
    assert "Neyshabur et al. 2017" in " ".join(out.split())


@pytest.mark.parametrize("factory", ["build", "images", "flat", "ready"])
def test_images_are_given_as_the_network_takes_them(here, capsys, factory):
    assert measured(capsys, f"net.py:{factory} --data digits --samples 20 --measures loss").keys() == {
        "loss",
        "error rate",
    }


def test_data_out_of_a_file(here, capsys):
    x = np.random.default_rng(0).random((30, 64))
    np.savez(here / "mine.npz", x=x, y=np.arange(30, dtype=np.uint8) % 10, more=np.zeros(3))
    torch.save({"weight": torch.zeros(10, 64), "bias": torch.arange(10.0)}, here / "bias.pt")
    found = measured(capsys, "net.py:flat --data mine.npz --checkpoint bias.pt --measures loss")
    assert found["error rate"] == pytest.approx(0.9)  # of ten classes in equal parts, one is always chosen
    few = measured(capsys, "net.py:flat --data mine.npz --checkpoint bias.pt --measures loss --samples 2")
    assert few["error rate"] in (0, 0.5, 1)


def test_a_checkpoint_is_loaded(here, capsys):
    net = measuring.network("net.py:build")
    for w in net.parameters():
        w.data.fill_(0.25)
    for i, saved in enumerate(
        (net.state_dict(), {"state_dict": net.state_dict(), "epoch": 3}, {"model": net.state_dict()})
    ):
        torch.save(saved, here / f"{i}.pt")
        found = measured(capsys, f"net.py:build --data digits --checkpoint {i}.pt --measures layers")
        assert found["Frobenius norm: 3"] == pytest.approx(0.25 * 80**0.5)


class Trap:
    """Pickled, it calls a function on loading."""

    def __reduce__(self):
        return (exec, ("open('sprung', 'w').close()",))


def test_nothing_in_a_checkpoint_is_executed(here, capsys):
    torch.save({"state_dict": {}, "trap": Trap()}, here / "trap.pt")
    (here / "plain.pkl").write_bytes(pickle.dumps(Trap()))
    np.savez(here / "trap.npz", x=np.array([Trap()], dtype=object), y=np.zeros(1, dtype=np.int64))
    for words in ("--data digits --checkpoint trap.pt", "--data digits --checkpoint plain.pkl", "--data trap.npz"):
        status, out, err = run(capsys, f"net.py:build {words}")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert not (here / "sprung").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("net.py --data digits", "'net.py' is not of the form FILE:FACTORY"),
        ("net.py: --data digits", "'net.py:' is not of the form FILE:FACTORY"),
        ("none.py:build --data digits", "none.py: no such file"),
        ("text.txt:build --data digits", "text.txt is not a Python file"),
        ("bad.py:build --data digits", "bad.py.*SyntaxError"),
        ("net.py:nothing --data digits", "net.py has no 'nothing'; it has: .*build, broken"),
        ("net.py:broken --data digits", "net.py, line 14: ZeroDivisionError: one over none"),
        ("net.py:words --data digits", "net.py:words: must be or return a torch.nn.Module, got str"),
        ("net.py:number --data digits", "net.py:number: must be or return a torch.nn.Module, got int"),
        ("net.py:build", "Missing option '--data'"),
        ("net.py:build --data cifar", "unknown data 'cifar'; data: digits, mnist, or a file .npz"),
        ("net.py:build --data none.npz", "none.npz: no such file"),
        ("net.py:build --data torn.npz", "torn.npz is no .npz of plain arrays that can be read"),
        ("net.py:build --data names.npz", "names.npz: must hold arrays x and y, it holds: images"),
        ("net.py:build --data integers.npz", "integers.npz: x must be float32 or float64.*got uint8"),
        ("net.py:build --data labels.npz", "labels.npz: y must hold one integer.*got float64"),
        ("net.py:build --data short.npz", r"short.npz: y must hold one integer.*of the 5 inputs.*\(4,\)"),
        (
            "net.py:build --data wide.npz",
            r"the network does not take inputs of shape \(5, 65\): RuntimeError: mat1 and mat2",
        ),
        ("net.py:build --data high.npz", r"y: must lie in 0 \.\.\. 9, got 0 \.\.\. 10"),
        ("net.py:build --data digits --measures margins", "measures: must be some of loss, margin"),
        ("net.py:build --data digits --samples 1", "samples"),
        ("net.py:build --data digits --seed -1", "seed"),
        ("net.py:build --data digits --device tpu", "unknown device 'tpu'"),
        ("net.py:build --data digits --checkpoint none.pt", "none.pt: no such file"),
        ("net.py:build --data digits --checkpoint net.py", "net.py is no"),
        ("net.py:build --data digits --checkpoint module.pt", "module.pt is not loaded: it holds more than tensors"),
        ("net.py:build --data digits --checkpoint other.pt", "other.pt does not fit the network: .*size mismatch"),
        ("net.py:build --data digits --checkpoint list.pt", "list.pt: must hold a state_dict"),
        ("net.py:build --data digits --checkpoint torn.pt", "torn.pt is no"),
        ("net.py:build --data digits --checkpoint words.yml", "words.yml is no"),
        ("net.py:build --data none_at_all.npz", "none_at_all.npz: must hold at least one sample"),
        ("parsing.py:build --data digits", "parsing.py, line 4: SystemExit: 2"),
    ],
)
def test_refused_in_one_line(here, capsys, words, told):
    x = np.zeros((5, 64), dtype=np.float32)
    y = np.zeros(5, dtype=np.int64)
    np.savez(here / "names.npz", images=x)
    np.savez(here / "integers.npz", x=x.astype(np.uint8), y=y)
    np.savez(here / "labels.npz", x=x, y=y.astype(float))
    np.savez(here / "short.npz", x=x, y=y[1:])
    np.savez(here / "wide.npz", x=np.zeros((5, 65), dtype=np.float32), y=y)
    np.savez(here / "high.npz", x=x, y=np.array([0, 1, 2, 3, 10]))
    np.savez(here / "none_at_all.npz", x=x[:0], y=y[:0])
    (here / "words.yml").write_text("a: 1\n", "utf-8")
    (here / "parsing.py").write_text(PARSING, "utf-8")
    (here / "torn.npz").write_bytes((here / "wide.npz").read_bytes()[:300])
    torch.save(nn.Linear(2, 2), here / "module.pt")
    torch.save(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 10)).state_dict(), here / "other.pt"
    )
    torch.save([1, 2], here / "list.pt")
    (here / "torn.pt").write_bytes((here / "list.pt").read_bytes()[:200])
    status, out, err = run(capsys, words)
    *usage, err = err.splitlines()  # argparse shows its own first
    assert (status, out, bool(usage)) == (2, "", words.startswith("parsing"))
    assert "Traceback" not in err
    assert re.search(told, err), err


def test_a_file_may_print_have_dataclasses_and_read_its_own_arguments(here, capsys):
    (here / "research.py").write_text(RESEARCH, "utf-8")
    status, out, err = run(capsys, "research.py:build --data digits --samples 20 --measures loss --json")
    assert (status, err) == (0, "imported\nbuilt\n")
    assert json.loads(out)["samples"] == 20


def test_a_checkpoint_of_a_data_parallel_network(here, capsys):
    net = measuring.network("net.py:build")
    torch.save(net.state_dict(), here / "plain.pt")
    torch.save(nn.DataParallel(net).state_dict(), here / "wrapped.pt")
    plain, wrapped = (
        measured(capsys, f"net.py:build --data digits --samples 20 --checkpoint {name}.pt --measures loss")
        for name in ("plain", "wrapped")
    )
    assert plain == wrapped
