"""Files are whole or absent; a lock ends with its holder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from implicitreg.reproduce import storage
from implicitreg.reproduce.project import UsageError


def test_written_file_is_readable_by_others(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        storage.write(tmp_path / "a", "text")
    finally:
        os.umask(umask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(storage.os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path, size = tmp_path / "a", 2_000_000
    script = (
        "import itertools, pathlib, sys\n"
        "from implicitreg.reproduce import storage\n"
        f"for letter in itertools.cycle('ab'): storage.write(pathlib.Path(sys.argv[1]), letter * {size})\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, os.fspath(path)]) as writer:
        try:
            while not path.exists():
                assert writer.poll() is None
            for _ in range(50):
                text = path.read_text()
                assert text in ("a" * size, "b" * size)
        finally:
            writer.kill()
    assert path.read_text() in ("a" * size, "b" * size)
    storage.tidy(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_nan() -> None:
    content = {"a": [1.5, float("nan"), (float("inf"),)], "é": None}
    assert json.loads(storage.to_json(content)) == {"a": [1.5, None, [None]], "é": None}
    assert "é" in storage.to_json(content)


def test_lock_is_held_against_another_process(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys\n"
        "from implicitreg.reproduce import storage\n"
        "with storage.locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, os.fspath(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="in use"), storage.locked(tmp_path):
            pass
        holder.kill()
    with storage.locked(tmp_path):
        pass


@pytest.mark.parametrize("below", ["", "runs", "runs/deep"])
def test_file_in_the_way(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write to"):
        storage.make_writable(tmp_path / "file" / below)
    with pytest.raises(UsageError, match="cannot write to"), storage.locked(tmp_path / "file" / below):
        pass


@pytest.mark.parametrize("number", ["EACCES", "EROFS", "ENOSPC"])
def test_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    import errno

    def refuse(*_: object, **__: object) -> None:
        code = getattr(errno, number)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(UsageError, match="cannot write to"):
        storage.make_writable(tmp_path)
