"""Whatever else goes wrong: full disks, damaged files, notebooks that fail, clocks that jump."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from implicitreg.reproduce import progress
from implicitreg.reproduce.cli import main

from .conftest import SWEEP, computed


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Give a file system in memory of a certain size; skip where nobody may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system in memory cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(toy: Any, tmp_path: Path) -> None:
    noise = "import random\nprint(''.join(chr(random.randrange(33, 127)) for _ in range(300_000)))"
    toy.notebook("toy/one", records="toy.big")
    toy.notebook("toy/two", noise)
    with small_disk(tmp_path / "disk", "256k") as disk:
        done = toy.run("reproduce", "--workers", "1", "--output", str(disk / "runs"))
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("implicitreg: ")
        assert "No space left on device" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        run = disk / "runs/book-seed0"
        finished = json.loads((run / "toy/one.ipynb").read_text())
        assert finished["metadata"]["implicitreg"]["fingerprint"]
        assert not (run / "toy/two.ipynb").exists()
        assert not list(run.rglob("*.tmp"))  # nothing half-written

        toy.notebook("toy/two", "print('short')")
        done = toy.run("reproduce", "--output", str(disk / "runs"))
        assert done.returncode == 0, done.stderr
        assert "toy/one  reused" in done.stderr


def test_a_full_disk_under_a_sweep(toy: Any, tmp_path: Path) -> None:
    big = SWEEP.replace("return x * x", "import torch; return torch.rand(20_000)")
    big = big.replace("print(sweep", "print(len(sweep").replace("]))", "])))")
    toy.notebook("toy/one", big, records="toy.big")
    with small_disk(tmp_path / "disk", "256k") as disk:
        done = toy.run("reproduce", "--output", str(disk / "runs"))
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("implicitreg: [Errno 28] No space left on device: ")
        assert "Traceback" not in done.stderr
        assert not list((disk / "runs").rglob("*.tmp"))
        finished = len(list((disk / "runs").rglob("*.cell")))
        assert 1 <= finished <= 3
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        done = toy.run("reproduce", "--output", str(disk / "runs"))
        assert done.returncode == 0, done.stderr
        assert len(computed(toy)) == 4 + 1  # the one that could not be stored was computed again


def test_a_damaged_cell_is_computed_again(toy: Any) -> None:
    toy.notebook("toy/one", SWEEP, records="toy.big")
    assert toy.run("reproduce").returncode == 0
    cells = sorted((toy.root / "_build/runs/book-seed0/.cells").rglob("*.cell"))
    cells[0].write_bytes(cells[0].read_bytes()[:-7])
    raw = cells[1].read_bytes()
    cells[1].write_bytes(raw[:-40] + bytes([raw[-40] ^ 1]) + raw[-39:])
    toy.notebook("toy/one", SWEEP, "edited = True", records="toy.big")
    done = toy.run("reproduce")
    assert done.returncode == 0
    for cell in cells[:2]:
        assert f"toy/one: the stored cell {cell.name[:12]}… is damaged: it is computed again" in done.stderr
    assert len(computed(toy)) == 4 + 2


def test_a_truncated_data_file(toy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = "train-images-idx3-ubyte.gz"
    (tmp_path / "data/mnist").mkdir(parents=True)
    (tmp_path / "data/mnist" / name).write_bytes(b"\x1f\x8b" + bytes(1000))
    toy.notebook("toy/one", records="toy.big")
    toy.notebook("toy/reads", "from implicitreg.data import mnist\nmnist()")
    monkeypatch.setenv("IMPLICITREG_DATA", str(tmp_path / "data"))
    done = toy.run("reproduce")
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert f"toy/reads failed in cell 2: DataError: {name}: the file in {tmp_path}/data/mnist is another one" in said
    assert "or cut off" in said
    assert toy.executed("toy/one").exists()
    assert (tmp_path / "data/mnist" / name).stat().st_size == 1002  # left as it is


def test_notebooks_that_raise_hang_and_print_nan(inside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    inside.notebook("toy/fine", "print('a banana, nano, NaN-free, no nan_sum')", records="toy.big")
    inside.notebook("toy/raises", "raise ValueError('one line\\nand another')")
    inside.notebook("toy/hangs", "import threading; _ = threading.Event().wait(60)")
    inside.notebook("toy/nan", "print('so far')", "print([1.0, float('nan')])")
    inside.notebook("toy/shown", "float('nan')")
    inside.claims("other", "small", "C02")
    inside.notebook("other/lost", records="other.small", parameters='scale="book"\nseed=float("nan")\ndevice="auto"')
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    assert main(["reproduce", "--cell-timeout", "4", "toy"]) == 1
    out, err = capsys.readouterr()
    told = {line.split()[1]: line for line in err.splitlines() if line.startswith("implicitreg: ")}
    assert told.keys() == {"toy/raises", "toy/hangs", "toy/nan", "toy/shown"}
    assert "failed in cell 2: ValueError: one line; its copy: " in told["toy/raises"]
    assert "failed in cell 2: it took longer than 4 s (--cell-timeout); its copy: " in told["toy/hangs"]
    assert "failed in cell 3: it prints nan: a number was lost; its copy: " in told["toy/nan"]
    assert "failed in cell 2: it prints nan: a number was lost; its copy: " in told["toy/shown"]
    assert "Traceback" not in err
    assert "1 reproduced" in out
    assert inside.executed("toy/fine").exists()
    assert not inside.executed("toy/nan").exists()
    left = [
        p for p in psutil.Process().children(recursive=True) if p.pid not in before and "child.py" in str(p.cmdline())
    ]
    assert left == []


def test_a_clock_that_jumps(inside: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    inside.notebook("toy/one", SWEEP, records="toy.big")
    now = iter(range(10**9, 0, -(10**7)))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))  # backwards by a third of a year at each look
    assert main(["reproduce"]) == 0
    assert " in -" not in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(inside.root)
    # Files that seem to be of the past or of the future are reused by what is in them.
    for path in (inside.root / "_build").rglob("*"):
        os.utime(path, (0, 0) if path.suffix == ".cell" else (4e9, 4e9))
    assert main(["reproduce"]) == 0
    assert "toy/one  reused" in capsys.readouterr().err
    inside.notebook("toy/one", SWEEP, "edited = True", records="toy.big")
    assert main(["reproduce"]) == 0
    assert computed(inside) == list("0123")


def test_the_forecast_goes_by_a_clock_that_cannot_jump() -> None:
    forecast = progress.Forecast({"a": 10.0}, 1)
    assert forecast._clock is time.monotonic
