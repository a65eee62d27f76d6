"""Whether the book says the same when it is executed again, and on another code path of this machine's processor."""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from implicitreg.reproduce.planning import Plan, Settings
from implicitreg.reproduce.project import CommandError, Notebook, Project
from implicitreg.reproduce.runner import reproduce
from implicitreg.reproduce.runs import RECORDED, judge
from implicitreg.reproduce.storage import locked

# The plainest code that torch and MKL have: what an older processor would run.
PLAIN = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}
_NUMBER = re.compile(r"(?<![\w.])[-−+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w])")


@dataclass(frozen=True)
class Moved:
    """Something that a notebook printed, in one execution and in another."""

    notebook: str
    cell: int
    before: str
    after: str


@dataclass(frozen=True)
class MovedClaim:
    """A claim whose samples or control changed, if only in the last bit.

    Attributes
    ----------
    claim
        Its full id.
    by
        The largest change of a number, relative to the larger of the two; infinite where they are not as many.
    before, after
        Its verdicts.
    """

    claim: str
    by: float
    before: str
    after: str


@dataclass(frozen=True)
class Comparison:
    """Two executions of the same notebooks.

    Attributes
    ----------
    names
        What the two are.
    printed
        Everything printed that differs, number by number.
    claims
        The claims that moved.
    compared
        How many numbers were compared.
    """

    names: tuple[str, str]
    printed: Sequence[Moved]
    claims: Sequence[MovedClaim]
    compared: int

    @property
    def same(self) -> bool:
        """Whether everything printed is the same, and every verdict."""
        return not self.printed and all(claim.before == claim.after for claim in self.claims)


def _texts(cell: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a cell shows as text: what it prints, tables, and the words of its figures."""
    streams: dict[str, str] = {}  # whole: they arrive in pieces as they please
    for output in cell.get("outputs", ()):
        if output["output_type"] == "stream":
            streams[output["name"]] = streams.get(output["name"], "") + "".join(output["text"])
    yield from (streams[name] for name in sorted(streams))
    for output in cell.get("outputs", ()):
        for kind, content in sorted(output.get("data", {}).items()):
            if kind.startswith("text/"):
                yield "".join(content)
        figure = output.get("metadata", {}).get("image/png", {})
        yield from (str(figure[word]) for word in ("alt", "caption") if word in figure)


def printed(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[list[Moved], int]:
    """Return what two executed copies of a notebook print differently, and how many numbers were compared.

    Parameters
    ----------
    name
        The notebook's short name.
    before, after
        The two copies, as plain JSON data.
    """
    moved, compared = [], 0
    nothing: Mapping[str, Any] = {}
    cells = zip_longest(_code_cells(before), _code_cells(after), fillvalue=nothing)
    for number, copies in enumerate(cells, 1):
        for a, b in zip_longest(*map(_texts, copies), fillvalue=""):
            compared += len(_NUMBER.findall(a))
            for x, y in zip_longest(a.splitlines(), b.splitlines(), fillvalue=""):
                if x == y:
                    continue
                if _NUMBER.sub("#", x) == _NUMBER.sub("#", y):
                    pairs = zip(_NUMBER.findall(x), _NUMBER.findall(y), strict=True)
                    moved += [Moved(name, number, one, other) for one, other in pairs if one != other]
                else:
                    moved.append(Moved(name, number, x.strip(), y.strip()))
    return moved, compared


def _code_cells(notebook: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the code cells but for that in which papermill puts parameters, which a recorded notebook has not."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [cell for cell in cells if "injected-parameters" not in cell.get("metadata", {}).get("tags", ())]


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _numbers(inner)
    elif value is not None:
        yield float(value)


def _relative(before: Any, after: Any) -> float:
    one, other = list(_numbers(before)), list(_numbers(after))
    if len(one) != len(other):
        return float("inf")
    moves = (abs(a - b) / max(abs(a), abs(b)) for a, b in zip(one, other, strict=True) if a != b)
    return max(moves, default=0.0)


def compare(
    project: Project,
    scale: str,
    names: tuple[str, str],
    before: Mapping[str, dict[str, Any]],
    after: Mapping[str, dict[str, Any]],
) -> Comparison:
    """Compare two executions of the same notebooks, given by their short names as plain JSON data."""
    from implicitreg.claims import recorded

    moved, compared = [], 0
    for name in before:
        differences, numbers = printed(name, before[name], after[name])
        moved += differences
        compared += numbers
    evidence = [
        {found.id: found for notebook in copy.values() for _, found in recorded(notebook)} for copy in (before, after)
    ]
    verdicts = [
        {one.judgement.claim.id: str(one.judgement.verdict) for one in judge(project, copy, scale)}
        for copy in (before, after)
    ]
    claims = []
    for claim in evidence[0].keys() & evidence[1].keys():
        one, other = evidence[0][claim], evidence[1][claim]
        by = max(_relative(one.samples, other.samples), _relative(one.control, other.control))
        if by or verdicts[0][claim] != verdicts[1][claim]:
            claims.append(MovedClaim(claim, by, verdicts[0][claim], verdicts[1][claim]))
    return Comparison(names, moved, sorted(claims, key=lambda each: -each.by), compared)


def _execute(
    project: Project,
    notebooks: Sequence[Notebook],
    settings: Settings,
    folder: Path,
    variables: Mapping[str, str],
    workers: int | None,
    scheduler: str | None,
) -> dict[str, dict[str, Any]]:
    """Execute notebooks anew in a folder of their own, which must not be there before."""
    plan = Plan(project, notebooks, settings, output=folder, fresh=True)
    report = reproduce(plan, workers=workers, scheduler=scheduler, variables=variables)
    if report.complaints:
        raise CommandError(f"nothing to compare: {report.complaints[0]}")
    finished = plan.finished()
    return {notebook.name: finished[notebook.name] for notebook in notebooks}


def verify(
    project: Project,
    notebooks: Sequence[Notebook],
    *,
    twice: bool = False,
    settings: Settings | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
) -> list[Comparison]:
    """Execute notebooks, and compare all that they print and record.

    Parameters
    ----------
    project, notebooks
        Which notebooks.
    twice
        Execute them twice and compare the two, and once more on the plainest code path of torch and MKL; else they are
        executed once, and compared with what is recorded in the book.
    settings
        Scale, seed and device; those of the recorded notebooks by default.
    workers, scheduler
        As in `reproduce`.

    Returns
    -------
    list of Comparison
        One for each pair that was compared.

    Raises
    ------
    CommandError
        A notebook failed.
    """
    settings = settings or Settings()
    folder = project.build / "verify"

    def execute(name: str, variables: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        shutil.rmtree(folder / name, ignore_errors=True)
        return _execute(project, notebooks, settings, folder / name, variables, workers, scheduler)

    with locked(folder):
        first = execute("first", {})
        if not twice:
            names = (RECORDED, "executed")
            return [compare(project, settings.scale, names, {each.name: each.read() for each in notebooks}, first)]
        second = execute("second", {})
        plain = execute("plain", PLAIN)
    pairs = (("first", "second"), second), (("first", "plain code path"), plain)
    return [compare(project, settings.scale, names, first, other) for names, other in pairs]
