"""The outputs that are committed: re-executed, normalised, and refused where they could not be the same twice."""

import base64
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from implicitreg.claims import recorded
from implicitreg.reproduce.environment import describe
from implicitreg.reproduce.execution import KERNEL, LANGUAGE, as_node, as_text
from implicitreg.reproduce.fingerprint import KEY
from implicitreg.reproduce.planning import Plan, Settings
from implicitreg.reproduce.project import CommandError, Notebook, Project, UsageError, shown
from implicitreg.reproduce.runner import Report, reproduce
from implicitreg.reproduce.runs import Run, claims_json, judge
from implicitreg.reproduce.storage import make_writable, to_json, write

_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}", re.IGNORECASE)
_VOLATILE = {"papermill", "execution", "ExecuteTime", "collapsed", "widgets", KEY}  # what tools leave in metadata


class RefusedError(CommandError):
    """Outputs that must not be committed; ``lines`` has one for each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("nothing was recorded")
        self.lines = lines


def record(
    project: Project, notebooks: Sequence[Notebook], *, workers: int | None = None, cell_timeout: int | None = None
) -> tuple[Report, list[Path]]:
    """Re-execute notebooks at scale ``book`` with seed 0, and put their outputs into the book.

    Nothing is written unless every notebook finished and none of their outputs is refused.

    Parameters
    ----------
    project, notebooks
        Which notebooks to record.
    workers, cell_timeout
        As in `reproduce`.

    Returns
    -------
    Report, list of Path
        What the run came to, and the files that changed; none when a notebook failed.

    Raises
    ------
    CommandError
        As `reproduce`; when a notebook's own parameters are not those of the book; when a notebook was edited
        meanwhile; `RefusedError` when an output names this machine, shows an address, an error or a warning.
    """
    plan = Plan(project, notebooks, Settings(), fresh=True)
    for step in plan.steps:
        if step.inject:
            wanted = ", ".join(f"{name} = {value!r}" for name, value in step.inject.items())
            raise CommandError(f"{step.notebook.name}: to be recorded, its own parameters must say {wanted}")
    for folder in {notebook.path.parent for notebook in notebooks} | {project.evidence.parent}:
        make_writable(folder)
    report = reproduce(plan, workers=workers, cell_timeout=cell_timeout)
    if report.complaints:
        return report, []

    finished, refused, done = plan.finished(), [], {}
    for step in plan.steps:
        name = step.notebook.name
        if step.notebook.read() != step.content:
            raise CommandError(f"{shown(step.notebook.path)} was edited while it ran: nothing was recorded")
        done[name] = normalise(name, step.content, finished[name])
        refused += [f"{name}, {complaint}" for complaint in complaints(done[name], project)]
    if refused:
        raise RefusedError(refused)

    contents = {step.notebook.path: as_text(as_node(done[step.notebook.name])).encode() for step in plan.steps}
    contents[project.evidence] = _evidence(project, done).encode()
    contents |= _pictures(project, done)
    changed = [path for path, content in contents.items() if not path.is_file() or path.read_bytes() != content]
    for path in changed:
        write(path, contents[path])
    return report, changed


def _pictures(project: Project, done: Mapping[str, dict[str, Any]]) -> dict[Path, bytes]:
    """Return the copies of figures, ``book/_static/<figure>.png``, that are shown where no notebook is."""
    figures = {}
    for notebook in done.values():
        for output in (output for cell in notebook["cells"] for output in cell.get("outputs", ())):
            if figure := output.get("metadata", {}).get("image/png", {}).get("name"):
                figures[figure] = base64.b64decode(_joined(output["data"]["image/png"]))
    copies = (project.root / "book/_static").glob("*.png")
    return {copy: figures[copy.stem] for copy in copies if copy.stem in figures}


def _evidence(project: Project, done: Mapping[str, dict[str, Any]]) -> str:
    """Return the ``claims.json`` of all recorded notebooks, without what differs between two recordings."""
    notebooks = {name: done.get(name) or notebook.read() for name, notebook in project.notebooks.items()}
    settings = Settings()
    environment = describe(project, settings.parameters)
    del environment["commit"]
    return to_json(claims_json(environment, judge(project, notebooks, settings.scale)))


def keep(project: Project, run: Run) -> list[Path]:
    """Keep the claims of a run larger than ``book``, so that the book shows them beside the recorded ones.

    For each chapter that recorded a claim, ``evidence/<scale>/<chapter>/claims.json`` takes what it recorded: the
    claims as in any ``claims.json``, without times, and the samples from which the book judges them anew. What is
    kept of notebooks that the run does not have stays, each claim with the environment that it was measured in.

    Parameters
    ----------
    project
        The project.
    run
        A finished run at another scale than ``book`` or ``smoke``.

    Returns
    -------
    list of Path
        The files that were written.

    Raises
    ------
    UsageError
        The scale is not larger than ``book``.
    CommandError
        The evidence is not as it must be.
    """
    if run.scale in ("smoke", "book"):
        raise UsageError(f"{run.name} is of scale {run.scale}: only larger runs are kept; record writes those of book")
    judged = judge(project, run.notebooks, run.scale)
    written = []
    for chapter in sorted({name.partition("/")[0] for name in run.notebooks}):
        of_chapter = {name: nb for name, nb in run.notebooks.items() if name.partition("/")[0] == chapter}
        samples = [evidence.to_json() for notebook in of_chapter.values() for _, evidence in recorded(notebook)]
        if not samples:
            continue
        known = {entry["id"] for entry in samples}
        claims = [replace(one, seconds=None) for one in judged if one.judgement.claim.id in known]
        path = project.larger_evidence(run.scale, chapter)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {**claims_json(run.environment, claims), "evidence": samples}
        others = {one.judgement.claim.id for one in judged} - known
        for part, kept in _kept_of_others(path, set(of_chapter), others).items():
            content[part] += kept
        write(path, to_json(content))
        written.append(path)
    return written


def _kept_of_others(path: Path, notebooks: set[str], claims: set[str]) -> dict[str, list[Any]]:
    """Return what is kept already of other notebooks than these, as far as its claims still exist."""
    if not path.is_file():
        return {}
    try:
        before = json.loads(path.read_text("utf-8"))
        stay = {
            entry["id"]: {"environment": before["environment"]} | entry
            for entry in before["claims"]
            if entry["notebook"] not in notebooks and entry["id"] in claims
        }
        return {"claims": list(stay.values()), "evidence": [one for one in before["evidence"] if one["id"] in stay]}
    except (ValueError, KeyError, TypeError):
        raise CommandError(f"{shown(path)} is not what implicitreg keeps: mend or delete it") from None


def _joined(text: Any) -> str:
    return text if isinstance(text, str) else "".join(text)


def _lasting(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in _VOLATILE}


def normalise(name: str, original: Mapping[str, Any], executed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the original notebook with the outputs of an executed copy, and nothing else of it.

    Parameters
    ----------
    name
        The notebook's short name.
    original, executed
        The notebook and its executed copy, as plain JSON data.

    Returns
    -------
    dict
        The notebook to be committed: sources, ids and tags of the original; execution counts 1 to n.
    """
    notebook: dict[str, Any] = json.loads(json.dumps(original))
    notebook["metadata"] = {
        **_lasting(notebook["metadata"]),
        "kernelspec": dict(KERNEL),
        "language_info": {"name": LANGUAGE},
    }
    notebook["nbformat"], notebook["nbformat_minor"] = 4, max(5, notebook.get("nbformat_minor", 0))
    count = 0
    for index, (cell, run) in enumerate(zip(notebook["cells"], executed["cells"], strict=True)):
        cell.setdefault("id", hashlib.sha256(f"{name} {index}".encode()).hexdigest()[:8])
        cell["metadata"] = _lasting(cell["metadata"])
        if cell["cell_type"] != "code":
            continue
        ran = bool(_joined(cell["source"]).strip())
        count += ran
        cell["execution_count"] = count if ran else None
        cell["outputs"] = list(_outputs(run["outputs"], count)) if ran else []
    return notebook


def _outputs(outputs: Sequence[Mapping[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """Yield a cell's outputs; pieces of one stream, which arrive as they please, are put together."""
    last: dict[str, Any] = {}
    for output in outputs:
        output = dict(output)
        if output["output_type"] == "execute_result":
            output["execution_count"] = count
        if output["output_type"] == "stream":
            output["text"] = _joined(output["text"])
            if last.get("output_type") == "stream" and last["name"] == output["name"]:
                last["text"] += output["text"]
                continue
        if last:
            yield last
        last = output
    if last:
        yield last


def complaints(notebook: Mapping[str, Any], project: Project) -> Iterator[str]:
    """Yield what forbids to commit a notebook's outputs, one line each.

    Parameters
    ----------
    notebook
        A normalised notebook, as plain JSON data.
    project
        The project, whose place on this machine no output may tell.
    """
    paths = {str(path) for path in (Path.home(), project.root, sys.prefix, tempfile.gettempdir())} - {"/"}
    private = re.compile(r"(?<![\w.])(" + "|".join(map(re.escape, sorted(paths))) + r")(?![\w-])")
    forbidden = ((_ADDRESS, "an address"), (private, "a path of this machine"))
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            where = f"cell {cell['execution_count']}"
            if output["output_type"] == "error":
                yield f"{where}: ends in an error, {output.get('ename')}: {output.get('evalue')}"
            elif output.get("name") == "stderr":
                yield f"{where}: writes to stderr: {_glimpse(output['text'], 0)}"
            else:
                text = _readable(output)
                for pattern, what in forbidden:
                    if found := pattern.search(text):
                        yield f"{where}: shows {what}: {_glimpse(text, found.start())}"


def _readable(output: Mapping[str, Any]) -> str:
    """Return everything in an output that is not a picture, as text."""
    data = {mime: content for mime, content in output.get("data", {}).items() if not mime.startswith("image/")}
    texts = [_joined(content) if mime.startswith("text/") else json.dumps(content) for mime, content in data.items()]
    return "\n".join([_joined(output.get("text", "")), *texts, json.dumps(output.get("metadata", {}))])


def _glimpse(text: str, at: int) -> str:
    """Return the line of a text around a position, short enough for a message."""
    start = max(text.rfind("\n", 0, at) + 1, at - 30)
    line = text[start:].lstrip().partition("\n")[0]
    return repr(line[:77] + "..." if len(line) > 80 else line)
