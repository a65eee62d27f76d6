"""The performance dashboard: from what the benchmarks measured, the tables and the figure that the book shows.

``python benchmarks/dashboard.py RAW`` takes rows and growth out of pytest-benchmark's file and keeps them in
``evidence/benchmarks/benchmarks.json``; without an argument it starts from that file. Either way it writes
``evidence/benchmarks/dashboard.md`` and ``book/_static/benchmarks.png``.
"""

import hashlib
import io
import json
import platform
import statistics
import sys
import textwrap
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from implicitreg.figures import COLOURS, INK, style

ROOT = Path(__file__).resolve().parents[1]
RESULTS, TABLES = (ROOT / "evidence" / "benchmarks" / name for name in ("benchmarks.json", "dashboard.md"))
FIGURE = ROOT / "book" / "_static" / "benchmarks.png"

PEERS = ("curvlinops-for-pytorch", "pyhessian", "tensorly")
"""Packages that the library is compared with, where they are installed."""

LESS_ACCURATE = 10
ROUNDING = 1e-5
"""A method is as accurate as the library if its error is at most this many times the library's, or at most this."""

_STRICT = ConfigDict(frozen=True, allow_inf_nan=False)
_Positive = Annotated[float, Field(gt=0)]


class UnreadableError(Exception):
    """A file that is missing, or is not what the benchmarks write; the message says which and why."""


class Row(BaseModel):
    """One method at one job; without times where it is not installed."""

    model_config = _STRICT

    section: str
    job: str
    method: str
    seconds: _Positive | None
    ratio: _Positive | None
    error: Annotated[float, Field(ge=0)] | None
    ours: bool


class Growth(BaseModel):
    """How the time of one method grows."""

    model_config = _STRICT

    section: str
    job: str
    method: str
    size: list[_Positive]
    seconds: list[_Positive]
    exponent: float


class Results(BaseModel):
    """What a run of all benchmarks measured, and on what."""

    model_config = _STRICT

    environment: dict[str, str]
    rows: Annotated[list[Row], Field(min_length=1)]
    growth: list[Growth]

    def jobs(self) -> dict[tuple[str, str], list[Row]]:
        """Return the rows of each job, by section and job, in the order of the run."""
        found: dict[tuple[str, str], list[Row]] = {}
        for section in dict.fromkeys(row.section for row in self.rows):
            for row in (row for row in self.rows if row.section == section):
                found.setdefault((section, row.job), []).append(row)
        return found

    def rivals(self) -> dict[str, list[tuple[Row, bool]]]:
        """Return the timed alternatives of each job that has any, fastest first, and whether each is less accurate."""
        found = {}
        for (_, job), rows in self.jobs().items():
            exact = next((row.error or 0.0 for row in rows if row.ours), 0.0)
            least = max(LESS_ACCURATE * exact, ROUNDING)
            others = sorted((row for row in rows if not row.ours and row.ratio is not None), key=_ratio)
            if others:
                found[job] = [(row, (row.error or 0.0) > least) for row in others]
        return found


def _ratio(row: Row) -> float:
    assert row.ratio is not None
    return row.ratio


# Reading


def load(path: Path) -> Results:
    """Return the results that a file holds."""
    return _checked(_json(path), path)


def condensed(path: Path) -> Results:
    """Return rows and growth of the benchmarks in a file of pytest-benchmark, and what they ran on."""
    raw = _json(path)
    try:
        found: dict[str, Any] = {"environment": _environment(raw["machine_info"]), "rows": [], "growth": []}
        for benchmark in raw["benchmarks"]:
            module = Path(benchmark["fullname"].partition("::")[0]).stem
            section = module.removeprefix("test_").replace("_", " ").capitalize()
            for kind in ("rows", "growth"):
                found[kind] += [{"section": section, **entry} for entry in benchmark["extra_info"].get(kind, ())]
    except (KeyError, TypeError, AttributeError) as error:
        raise UnreadableError(f"{_shown(path)}: not written by pytest-benchmark ({error!r})") from None
    return _checked(found, path)


def _shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UnreadableError(f"{_shown(path)}: no such file; `make bench` writes it") from None
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{_shown(path)}: not readable as JSON ({error})") from None


def _checked(content: Any, path: Path) -> Results:
    try:
        results = Results.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "content"
        raise UnreadableError(f"{_shown(path)}: {place}: {first['msg'].lower()}") from None
    for (section, job), rows in results.jobs().items():
        if sum(row.ours for row in rows) != 1:
            raise UnreadableError(f"{_shown(path)}: job {job!r} of {section}: exactly one row must be ours")
    return results


def _environment(machine: dict[str, Any]) -> dict[str, str]:
    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    return {
        "processor": str(machine["cpu"]["brand_raw"]),
        "threads": "1",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "scipy", *PEERS)},
    }


# Tables


def duration(seconds: float) -> str:
    """Return a time with two or three digits and its unit.

    >>> [duration(t) for t in (1.234e-7, 4.05e-5, 0.0123, 2.5, 1234.5)]
    ['0.12 µs', '40 µs', '12 ms', '2.5 s', '1,234 s']
    """
    unit, scale = next((u, s) for u, s in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)) if seconds * s >= 0.995 or u == "µs")
    return f"{_short(seconds * scale)} {unit}"


def _short(value: float) -> str:
    if value >= 9.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 0.995 else f"{value:.2f}" if value >= 0.0995 else f"{value:.1g}"


def times(ratio: float) -> str:
    """Return a ratio: ``0.35×``, ``7.3×``, ``1,273×``."""
    return f"{_short(ratio)}×"


def off(error: float | None) -> str:
    """Return an error: percent where it is large, else its power of ten."""
    if error is None:
        return "—"
    return "0" if error == 0 else f"{100 * error:.1f} %" if error >= 1e-3 else f"{error:.0e}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: int) -> list[str]:
    """Return a table of Markdown whose last columns, some number of them, are numbers."""
    align = ["---"] * (len(head) - right) + ["--:"] * right
    return ["| " + " | ".join(row) + " |" for row in (head, tuple(align), *rows)]


def nearest(results: Results) -> dict[str, float]:
    """Return the least ratio among the alternatives of each job that are as accurate as the library."""
    exact = {job: [_ratio(row) for row, coarse in each if not coarse] for job, each in results.rivals().items()}
    return {job: ratios[0] for job, ratios in exact.items() if ratios}


def finding(results: Results) -> str:
    """Return what was found, in two sentences."""
    ratios = list(nearest(results).values())
    if not ratios:
        return "No alternative that is as accurate was timed."
    slower = sum(ratio >= 1 for ratio in ratios)
    return (
        f"Of {len(ratios)} job{'s' * (len(ratios) > 1)} that something else does as accurately, the library is the "
        f"fastest in {slower}. The fastest such alternative takes {times(statistics.median(ratios))} the library's "
        f"time in the median, {times(min(ratios))} at least and {times(max(ratios))} at most."
    )


def fragment(results: Results) -> str:
    """Return the page's tables and its figure, as MyST Markdown."""
    rivals = results.rivals()
    lines = ["<!-- Made by benchmarks/dashboard.py from benchmarks.json. -->", "", finding(results), ""]
    faster = [(job, row, coarse) for job, others in rivals.items() for row, coarse in others if _ratio(row) < 1]
    if faster:
        lines += ["Faster than the library:", ""]
        for job, row, coarse in faster:
            note = f", but off by {off(row.error)}" if coarse else ""
            lines.append(f"- {row.method}, {times(_ratio(row))} its time{note} ({job})")
        lines.append("")
    lines += [
        "```{figure} /book/_static/benchmarks.png",
        ":name: fig-benchmarks",
        ":class: dark-light",
        ":width: 500px",
        f":alt: {alt(results)}",
        "",
        caption(results),
        "```",
        "",
    ]
    jobs = results.jobs()
    for section in dict.fromkeys(section for section, _ in jobs):
        head = "Job", "Method", "Time", "Ratio", "Error"
        lines += [
            f"## {section}",
            "",
            *_table(head, [c for key in jobs if key[0] == section for c in _cells(jobs[key])], 3),
            "",
        ]
    if results.growth:
        names = [None, *(entry.job for entry in results.growth)]
        cells = [
            (
                "" if entry.job == last else entry.job,
                entry.method,
                f"{min(entry.size):,g} to {max(entry.size):,g}",
                f"{entry.exponent:.2f}",
            )
            for last, entry in zip(names, results.growth, strict=False)
        ]
        lines += ["## Growth", "", *_table(("Time of", "Method", "Sizes", "Exponent"), cells, 2), ""]
    environment = [(name, value) for name, value in results.environment.items()]
    lines += ["## Measured on", "", *_table(("What", "Which"), environment, 0), ""]
    return "\n".join(lines)


def _cells(rows: list[Row]) -> list[tuple[str, ...]]:
    """Return the lines of a job in its table."""
    found: list[tuple[str, ...]] = []
    for i, row in enumerate(rows):
        numbers = "not installed", "—", "—"
        if row.seconds is not None and row.ratio is not None:
            numbers = duration(row.seconds), times(row.ratio), off(row.error)
        found.append(("" if i else row.job, f"**{row.method}**" if row.ours else row.method, *numbers))
    return found


def alt(results: Results) -> str:
    """Return what the figure shows, for those who do not see it."""
    said = f"One row for each alternative: its time over that of the library, on a logarithmic axis. {finding(results)}"
    if results.growth:
        ours = {row.method for row in results.rows if row.ours}
        own = [entry.exponent for entry in results.growth if entry.method in ours]
        if own:
            said += f" Below, exponents of growth: {min(own):.1f} to {max(own):.1f} for the library."
    return said


def caption(results: Results) -> str:
    """Return the figure's caption."""
    best = max(((ratio, job) for job, ratio in nearest(results).items()), default=None)
    said = (
        "Time of each alternative as a multiple of the library's, for the same job in the same run: "
        "circles to the right of the dotted line are slower, squares to its left faster. "
        f"Hollow: less accurate, with an error above {LESS_ACCURATE} times the library's and above {off(ROUNDING)}."
    )
    if best:
        said += f" The lead is largest for *{best[1]}*: {times(best[0])} for the fastest that is as accurate."
    if results.growth:
        said += (
            " Below: the exponent with which the time grows, for the library (filled) and for alternatives (hollow)."
        )
    return said


# The figure. On a phone of 360 px a page's figures are 308 px wide: of 5 inches, 11 points are then 9.4 px.

_WIDTH, _LINE, _TEXT = 5.0, 0.2, 11
_LEFT, _RIGHT = 0.12, 4.7
_LETTERS = 46  # of a job's name on a line

_Mark = tuple[float, str, str, bool]
"""Where, the text beside it, its colour, and whether it is filled."""


def draw(results: Results) -> Figure:
    """Return the figure: a line for each alternative below the name of its job; growth in a second panel."""
    mpl.use("Agg")
    style()
    ratios: dict[str, list[_Mark]] = {}
    for job, others in results.rivals().items():
        for row, coarse in others:
            ratio = _ratio(row)
            mark = (ratio, f"{_brief(row.method)} {times(ratio)}", COLOURS[ratio < 1], not coarse)
            ratios.setdefault(job, []).append(mark)
    ours = {row.method for row in results.rows if row.ours}
    growth: dict[str, list[_Mark]] = {}
    for entry in results.growth:
        own = entry.method in ours
        mark = (entry.exponent, f"{_brief(entry.method)} {entry.exponent:.1f}", COLOURS[not own], own)
        growth.setdefault(entry.job, []).append(mark)
    panels = [
        (marks, *labels)
        for marks, *labels in (
            (ratios, "Time of alternatives; this library: 1", "times this library's", 1.0),
            (growth, "Growth with the size", "exponent", None),
        )
        if marks
    ]
    # Above and below the lines there is room for the title, and for ticks and label.
    head, foot = 0.35, 0.6
    heights = [_lines(marks) * _LINE for marks, *_ in panels]
    height = sum(heights) + len(panels) * (head + foot)
    fig = plt.figure(figsize=(_WIDTH, height), layout="none")
    top = height
    for (marks, title, label, one), tall in zip(panels, heights, strict=True):
        top -= head + tall
        ax = fig.add_axes((_LEFT / _WIDTH, top / height, (_RIGHT - _LEFT) / _WIDTH, tall / height))
        top -= foot
        ax.set(ylim=(tall / _LINE, 0), yticks=[], xlabel=label)
        ax.set_title(title)
        ax.spines["left"].set_visible(False)
        at = [mark[0] for each in marks.values() for mark in each]
        if one is not None:
            ax.set(xscale="log", xlim=(min(0.5, min(at) / 2), max(20.0, max(at) * 2)))
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        else:
            ax.set_xlim(min(0.0, *at) - 0.2, max(2.0, *at) + 0.2)
        _panel(ax, marks, one)
    return fig


def _brief(method: str) -> str:
    """Return the name of a method, no longer than has room beside a mark in the middle."""
    return textwrap.shorten(method, 22, placeholder=" …")


def _lines(marks: dict[str, list[_Mark]]) -> float:
    """Return how many lines a panel takes."""
    return sum(len(textwrap.wrap(job, _LETTERS)) + len(each) + 0.4 for job, each in marks.items())


def _panel(ax: Any, marks: dict[str, list[_Mark]], one: float | None) -> None:
    """Draw jobs and their marks, and a dotted line at one where there is no text."""
    right, y = ax.figure.bbox.x1, 0.5
    for job, each in marks.items():
        texts = [
            (
                y + i,
                ax.text(0, y + i, line, transform=ax.get_yaxis_transform(), va="center", fontsize=_TEXT, weight="bold"),
            )
            for i, line in enumerate(textwrap.wrap(job, _LETTERS))
        ]
        y += len(texts)
        for x, words, colour, filled in each:
            marker = "s" if one is not None and x < one else "o"
            face = colour if filled else "none"
            ax.plot(x, y, marker, color=colour, markerfacecolor=face, markeredgewidth=1.6, markersize=6)
            text = ax.annotate(words, (x, y), (7, 0), textcoords="offset points", va="center", fontsize=_TEXT)
            if text.get_window_extent().x1 > right:
                text.set(ha="right", position=(-7, 0))
            texts.append((y, text))
            y += 1
        y += 0.4
        for line, text in texts:
            if one is not None:
                extent, at = text.get_window_extent(), ax.transData.transform((one, line))[0]
                if not extent.x0 - 4 <= at <= extent.x1 + 4:
                    ax.plot([one, one], [line - 0.5, line + 0.5], color=INK, linestyle=":", linewidth=1.4, zorder=1)


def picture(results: Results) -> bytes:
    """Return the figure as a PNG that says which results it shows."""
    fig = draw(results)
    buffer, content, info = io.BytesIO(), io.BytesIO(), PngInfo()
    fig.savefig(buffer, format="png", dpi=200, transparent=True)
    plt.close(fig)
    buffer.seek(0)
    info.add_text("results", digest(results))
    with Image.open(buffer) as image:
        image.convert("RGBA").quantize(64, method=Image.Quantize.FASTOCTREE).save(content, "png", pnginfo=info)
    return content.getvalue()


def digest(results: Results) -> str:
    """Return the SHA-256 of some results."""
    return hashlib.sha256(_text(results).encode()).hexdigest()


def _text(results: Results) -> str:
    return json.dumps(results.model_dump(), indent=1, ensure_ascii=False) + "\n"


def rounded(value: Any) -> Any:
    """Return results with four digits: more are noise."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(arguments: list[str]) -> int:
    """Write tables and figure; return the exit status."""
    try:
        if len(arguments) > 1:
            raise UnreadableError("at most one file can be given: what pytest-benchmark wrote")
        if arguments:
            results = Results.model_validate(rounded(condensed(Path(arguments[0])).model_dump()))
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text(_text(results), "utf-8")
        else:
            results = load(RESULTS)
    except UnreadableError as error:
        print(f"dashboard: {error}", file=sys.stderr)
        return 1
    TABLES.write_text(fragment(results), "utf-8")
    FIGURE.write_bytes(picture(results))
    print(f"{_shown(TABLES)}, {_shown(FIGURE)}: {finding(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
