"""A folder of executed notebooks, and the verdicts that follow from them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from implicitreg.reproduce.fingerprint import changes, fingerprint, sealed_parameters, surroundings
from implicitreg.reproduce.project import CommandError, Project, UsageError, listed, read_notebook, shown

if TYPE_CHECKING:
    from implicitreg.claims import Claim, ClaimFile, Judgement

RECORDED = "recorded"
DEFAULT = "book-seed0"
CLAIMS = "claims.json"
FAILED = ".failed.ipynb"


@dataclass(frozen=True)
class Judged:
    """A claim's judgement, and where its evidence stands.

    Attributes
    ----------
    judgement
        The verdict and what it follows from.
    notebook
        Short name of the notebook that recorded it; ``None`` where nothing is recorded.
    seconds
        What the recording cell took; ``None`` where that is not known.
    """

    judgement: "Judgement"
    notebook: str | None = None
    seconds: float | None = None

    def entry(self) -> dict[str, Any]:
        """Return the claim's entry in ``claims.json``."""
        return self.judgement.record(notebook=self.notebook, seconds=self.seconds)


@dataclass(frozen=True)
class Run:
    """Executed notebooks of one scale and seed.

    Attributes
    ----------
    name
        Such as ``book-seed0``, or ``recorded``.
    folder
        Where they are; ``None`` for the recorded notebooks, which are in the book.
    scale
        The scale whose rules hold.
    environment
        What they were executed in.
    notebooks
        Short name to the executed notebook as plain JSON data.
    stale
        What has changed since, by notebook, where something has.
    """

    name: str
    folder: Path | None
    scale: str
    environment: Mapping[str, Any]
    notebooks: Mapping[str, dict[str, Any]]
    stale: Mapping[str, list[str]]


def slug(scale: str, seed: int, extra: Mapping[str, Any]) -> str:
    """Return the name of a run's folder. Parameters of the user's own keep out of the plain run's way."""
    parts = [f"{scale}-seed{seed}", *(f"{name}={value}" for name, value in sorted(extra.items()))]
    return re.sub(r"[^\w.=+-]", "_", "-".join(parts))[:120]


def executed(folder: Path, name: str) -> Path:
    """Return the file of a finished notebook in a run's folder."""
    return folder / f"{name}.ipynb"


def failed(folder: Path, name: str) -> Path:
    """Return the file of a notebook that failed in a run's folder."""
    return folder / f"{name}{FAILED}"


def read_chapters(project: Project) -> "dict[str, ClaimFile]":
    """Return what every chapter claims and says of its notebooks.

    Raises
    ------
    CommandError
        A claim file is not as it must be.
    """
    from implicitreg.claims import ClaimError, load_chapters

    try:
        return load_chapters(project.book)
    except ClaimError as error:
        raise CommandError(str(error)) from None


def read_claims(project: Project) -> "dict[str, Claim]":
    """Return every claim of the book.

    Raises
    ------
    CommandError
        A claim file is not as it must be.
    """
    return {claim.id: claim for file in read_chapters(project).values() for claim in file.claims.values()}


def judge(project: Project, notebooks: Mapping[str, dict[str, Any]], scale: str) -> list[Judged]:
    """Judge every claim of the book by executed notebooks.

    Raises
    ------
    CommandError
        A claim file or the evidence is not as it must be.
    """
    from implicitreg.claims import ClaimError, judge_notebooks

    try:
        judgements = judge_notebooks(read_claims(project), notebooks, scale)
    except ClaimError as error:
        raise CommandError(str(error)) from None
    return [
        Judged(judgement, name, None if name is None or cell is None else _seconds(notebooks[name]["cells"][cell]))
        for judgement, name, cell in judgements
    ]


def _seconds(cell: Mapping[str, Any]) -> float | None:
    duration = cell.get("metadata", {}).get("papermill", {}).get("duration")
    return None if duration is None else round(float(duration), 3)


def claims_json(environment: Mapping[str, Any], judged: list[Judged]) -> dict[str, Any]:
    """Return what ``claims.json`` holds."""
    return {"environment": dict(environment), "claims": [one.entry() for one in judged]}


def _environment(path: Path) -> dict[str, Any]:
    """Return the environment in a ``claims.json``; empty where there is none."""
    try:
        environment = json.loads(path.read_text("utf-8"))["environment"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return environment if isinstance(environment, dict) else {}


def load_recorded(project: Project) -> Run:
    """Return the notebooks that are committed with their outputs."""
    notebooks = {name: notebook.read() for name, notebook in project.notebooks.items()}
    return Run(RECORDED, None, "book", _environment(project.evidence), notebooks, {})


def load(project: Project, folder: Path) -> Run:
    """Return a run, from its folder.

    Raises
    ------
    UsageError
        Nothing in the folder was executed by ``implicitreg reproduce``.
    """
    shared = surroundings(project)
    notebooks, stale, given = {}, {}, {}
    for name, notebook in project.notebooks.items():
        content = read_notebook(executed(folder, name))
        parameters = None if content is None else sealed_parameters(content)
        if content is None or parameters is None:
            continue
        notebooks[name], given = content, parameters
        different = changes(content, fingerprint(notebook, notebook.read(), parameters, shared))
        if different:
            stale[name] = different
    environment = _environment(folder / CLAIMS)
    scale = environment.get("scale", given.get("scale"))
    if not notebooks or not isinstance(scale, str):
        raise UsageError(f"there is no finished notebook in {shown(folder)}: implicitreg reproduce makes them")
    return Run(folder.name, folder, scale, environment or given, notebooks, stale)


def find(project: Project, name: str) -> Run:
    """Return the run that a command line names.

    Parameters
    ----------
    project
        The project.
    name
        A run's name, the path of its folder, or ``recorded``.

    Raises
    ------
    UsageError
        There is no such run.
    """
    if name == RECORDED:
        return load_recorded(project)
    for folder in (project.runs / name, Path(name).resolve()):
        if folder.is_dir():
            return load(project, folder)
    known = sorted(path.name for path in project.runs.glob("*") if path.is_dir()) if project.runs.is_dir() else []
    raise UsageError(f"no run {name!r}; there are: {listed([*known, RECORDED])}")


def default(project: Project) -> tuple[Run, str | None]:
    """Return the run that is meant when none is named, and a remark for the user.

    That is the run at scale ``book`` with seed 0 as long as it still belongs to this book and library, else the
    recorded notebooks.
    """
    folder = project.runs / DEFAULT
    if (folder / CLAIMS).is_file():
        try:
            run = load(project, folder)
        except UsageError as error:
            return load_recorded(project), f"{error}; showing the recorded notebooks instead"
        if not run.stale:
            return run, None
        return load_recorded(project), f"{remark(run)}; showing the recorded notebooks instead"
    return load_recorded(project), None


def remark(run: Run) -> str | None:
    """Return what a user should know of a run that no longer belongs to this book and library."""
    if not run.stale:
        return None
    parts = "; ".join(f"{name}: {', '.join(different)}" for name, different in run.stale.items())
    return f"{run.name} is out of date (changed since: {parts})"
