"""Everything that a notebook's outputs depend on, so that a result is reused only when nothing has changed.

A fingerprint maps each part (cells, claims, parameters, library, data, constraints) to its hash. It is kept by part,
not as one number, so that a user can be told *what* has changed. It lies in the executed notebook's own metadata:
one file, which is either whole or absent.
"""

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from implicitreg.reproduce.environment import data_hashes
from implicitreg.reproduce.project import Notebook, Project

PINNED = "IMPLICITREG_PINNED"
KEY = "implicitreg"  # in the metadata of an executed notebook

Fingerprint = dict[str, str]


def _hash(parts: Iterable[bytes]) -> str:
    """Hash parts so that no two different sequences run together."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _json(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _source(cell: Mapping[str, Any]) -> str:
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def _library(folder: Path) -> Iterable[bytes]:
    """Yield name and content of every file of the library, except what Python and installers leave there."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") or part == "__pycache__" or part.endswith(".egg-info") for part in parts):
            continue
        if path.is_file():
            yield "/".join(parts).encode()
            yield path.read_bytes()


def _constraints(path: Path) -> Iterable[bytes]:
    """Yield the constraints as written, and as installed: an environment may have been changed behind their back."""
    yield path.read_bytes() if path.is_file() else b""
    yield from _installed(pinned(path))


def pinned(path: Path) -> list[str]:
    """Return the names that a file of constraints pins."""
    text = path.read_text("utf-8") if path.is_file() else ""
    return re.findall(r"^([A-Za-z0-9][\w.-]*)\s*==", text, flags=re.MULTILINE)


def _installed(names: Iterable[str]) -> Iterable[bytes]:
    """Yield Python and packages as they are installed here."""
    yield platform.python_version().encode()
    for name in names:
        try:
            yield f"{name}=={metadata.version(name)}".encode()
        except metadata.PackageNotFoundError:
            yield f"{name} is absent".encode()


def library_code(variables: Mapping[str, str]) -> str:
    """Return the hash of what a process with these environment variables will compute with.

    That is the library's code, Python, and those of the installed packages that ``$IMPLICITREG_PINNED`` names.
    """
    places = [Path(place) for place in variables.get("PYTHONPATH", "").split(os.pathsep) if place]
    found = [place / "implicitreg" for place in places if (place / "implicitreg/__init__.py").is_file()]
    package = found[0] if found else Path(__file__).parents[1]
    files = sorted(package.rglob("*.py"))
    code = (part for path in files for part in (path.relative_to(package).as_posix().encode(), path.read_bytes()))
    return _hash([*code, *_installed(variables.get(PINNED, "").split())])


def other_library(wanted: str, variables: Mapping[str, str]) -> str | None:
    """Return a complaint where this machine would compute with something else than the run began with, if it would."""
    if library_code(variables) == wanted:
        return None
    return (
        f"the library or a package on {platform.node()} is not what the run began with: "
        "install the same versions there, and edit nothing meanwhile"
    )


def surroundings(project: Project) -> Fingerprint:
    """Return the parts that all notebooks share: ``library``, ``data`` and ``constraints``."""
    return {
        "library": _hash(_library(project.root / "lib")),
        "data": _hash([_json(data_hashes())]),
        "constraints": _hash(_constraints(project.constraints)),
    }


def fingerprint(
    notebook: Notebook, content: Mapping[str, Any], parameters: Mapping[str, Any], shared: Fingerprint
) -> Fingerprint:
    """Return the fingerprint of a notebook.

    Parameters
    ----------
    notebook, content
        The notebook, and its content as plain JSON data.
    parameters
        All of its parameters in this run.
    shared
        The `surroundings`.

    Returns
    -------
    dict
        Part to SHA-256. Outputs, execution counts and other metadata than tags do not count.
    """
    cells = [[c["cell_type"], _source(c), sorted(c.get("metadata", {}).get("tags", []))] for c in content["cells"]]
    claims = notebook.claims
    return {
        "cells": _hash([os.fsencode(notebook.name), _json(cells)]),
        "claims": _hash([claims.read_bytes() if claims.is_file() else b""]),
        "parameters": _hash([_json(parameters)]),
        **shared,
    }


def seal(
    executed: dict[str, Any],
    prints: Fingerprint,
    parameters: Mapping[str, Any],
    cost: Mapping[str, float | None] | None = None,
) -> None:
    """Put the fingerprint, the parameters that it belongs to, and its cost into an executed notebook's metadata."""
    executed["metadata"][KEY] = {"fingerprint": prints, "parameters": dict(parameters), "cost": dict(cost or {})}


def _sealed(executed: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    seal = executed["metadata"].get(KEY)
    found = seal.get(name) if isinstance(seal, dict) else None
    return found if isinstance(found, dict) else None


def sealed_parameters(executed: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the parameters that a notebook was executed with; ``None`` where it carries none."""
    return _sealed(executed, "parameters")


def sealed_cost(executed: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the ``seconds`` and the ``memory`` in MB that a notebook took, as far as they are known."""
    cost = None if executed is None else _sealed(executed, "cost")
    return {name: float(spent) for name, spent in (cost or {}).items() if isinstance(spent, (int, float))}


def changes(executed: Mapping[str, Any] | None, prints: Fingerprint) -> list[str]:
    """Return what has changed since a notebook was executed.

    Parameters
    ----------
    executed
        The executed notebook; ``None`` where there is none.
    prints
        The fingerprint as it is now.

    Returns
    -------
    list of str
        The parts that differ; empty when the notebook can be reused; ``["not executed yet"]`` when there is none.
    """
    old = None if executed is None else _sealed(executed, "fingerprint")
    if old is None:
        return ["not executed yet"]
    return [part for part in sorted(old.keys() | prints.keys()) if old.get(part) != prints.get(part)]
