"""Files that are either whole or absent, and a lock that cannot be left behind."""

import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from implicitreg.reproduce.project import UsageError, shown

UNFINISHED = ".tmp"
LOCK = ".lock"


def write(path: Path, content: str | bytes) -> None:
    """Write a file so that no reader, and no crash, ever sees half of it.

    The content, text as UTF-8, goes to a temporary name in the same folder, to the disk, and then takes its place in
    one step.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with open(unfinished, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        # A full disk is told without the file's name.
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = os.fspath(path)
        raise


def tidy(folder: Path) -> None:
    """Remove what a killed process had not finished writing."""
    for path in folder.rglob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(content: Any) -> str:
    """Return data as JSON text that any reader takes, and that a person can read."""
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write somewhere into one line for the user."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write to {shown(path)}: {error.strerror or error}") from None


def make_writable(folder: Path) -> None:
    """Create a folder, and make sure that files can be created in it.

    Raises
    ------
    UsageError
        They cannot: no permission, a read-only disk, a file in the way.
    """
    probe = folder / f".probe.{os.getpid()}{UNFINISHED}"
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for one process, which creates it if need be. The kernel lets go when the process ends.

    Raises
    ------
    UsageError
        Another process holds it, or it cannot be written to.
    """
    make_writable(folder)
    with writing_to(folder):
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{shown(folder)} is in use by another implicitreg: wait until it has ended") from None
        yield
    finally:
        os.close(lock)
