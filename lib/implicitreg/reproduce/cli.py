"""The command line: ``implicitreg``.

Exit status: 0, all went well; 1, a notebook failed or what was found is broken; 2, the command cannot be carried
out as it was given; 130, interrupted. Whatever goes wrong is told in one line.
"""

import ast
import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from implicitreg import __version__
from implicitreg.reproduce.project import SCALES, CommandError, Project, UsageError, listed, shown

if TYPE_CHECKING:
    from implicitreg.reproduce.runs import Run

DEVICES = ("auto", "cpu", "cuda")
_TOOLS = {
    "book": ("papermill", "nbformat", "nbclient", "jupyter_client", "ipykernel", "jupyter_book", "bs4"),
    "site": ("playwright", "pypdf"),
}

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Targets = Annotated[
    list[str] | None,
    typer.Argument(metavar="CHAPTER|NOTEBOOK", help="What to run, such as rank or rank/flow; all by default."),
]
RunName = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="A run's name or folder, or 'recorded'. By default book-seed0 where it is up to date, else recorded.",
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Notebooks to run at a time.", show_default="one for each processor")
]
CellTimeout = Annotated[
    int | None,
    typer.Option(min=1, metavar="SECONDS", help="What a cell may take.", show_default="600; 6 hours at scale paper"),
]
Dask = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Run on the workers of this Dask scheduler, such as tcp://host:8786."),
]


def _project() -> Project:
    return Project.find(Path.cwd())


class _Notes(logging.Handler):
    """Tells what the library warns of, as one line."""

    def emit(self, record: logging.LogRecord) -> None:
        _say(f"note: {record.getMessage()}")


def _say(line: str) -> None:
    """Print one line for the user, away from what may be piped on."""
    print(f"implicitreg: {' '.join(line.split())}", file=sys.stderr, flush=True)


def _show_list(project: Project) -> None:
    for chapter, notebooks in project.chapters.items():
        print(chapter)
        for notebook in notebooks:
            print(f"    {notebook.name}")


def _device(device: str, here: bool = True) -> None:
    if device not in DEVICES:
        raise UsageError(f"unknown device {device!r}; devices: {listed(DEVICES)}")
    if device == "cuda" and here:
        try:
            import torch
        except ModuleNotFoundError:
            raise UsageError("device 'cuda': torch is not installed") from None
        if not torch.cuda.is_available():
            raise UsageError("device 'cuda': there is none on this machine")


def _check(scale: str, workers: int | None, dask: str | None) -> None:
    """Refuse an unknown scale, and workers of two kinds."""
    if scale not in SCALES:
        raise UsageError(f"unknown scale {scale!r}; scales: {listed(SCALES)}")
    if dask is not None and workers is not None:
        raise UsageError("--workers is of this machine, --dask has its own workers: give one of them")


def _parameters(pairs: Sequence[str], given: dict[str, Any]) -> dict[str, Any]:
    """Return the user's own parameters; scale, seed and device have options, which these must not contradict."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"parameter {pair!r} is not of the form NAME=VALUE")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if name in given:
            if value != given[name]:
                raise UsageError(f"-p {pair} contradicts --{name} {given[name]}: use --{name}")
        elif name in found:
            raise UsageError(f"parameter {name!r} is given twice")
        else:
            found[name] = value
    return found


@app.callback(invoke_without_command=True)
def implicitreg(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    show_list: Annotated[bool, typer.Option("--list", help="List chapters and notebooks.")] = False,
) -> None:
    """Reproduce, judge and render the book on implicit regularization."""
    if version:
        print(f"implicitreg {__version__}")
        raise typer.Exit
    if show_list:
        _show_list(_project())
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def reproduce(
    targets: Targets = None,
    *,
    scale: Annotated[str, typer.Option(help="smoke, book or paper.")] = "book",
    seed: Annotated[int, typer.Option(min=0, help="Two seeds share no sample.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; auto is the CPU below scale paper.")] = "auto",
    workers: Workers = None,
    dask: Dask = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="Turn a notebook's own knob.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Execute everything anew.")] = False,
    timed: Annotated[
        bool, typer.Option("--timed", help="Fail where a notebook takes more than 3 times what its chapter declares.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be executed, and why.")] = False,
    show_list: Annotated[bool, typer.Option("--list", help="List chapters and notebooks.")] = False,
    cell_timeout: CellTimeout = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where runs are kept.", show_default="_build/runs")
    ] = None,
) -> None:
    """Execute notebooks, judge the claims, print the verdicts.

    A finished notebook is reused as long as its cells, claims and parameters, the library, the data and the
    constraints are unchanged. An interrupted run goes on where it stopped.
    """
    _check(scale, workers, dask)
    extra = _parameters(parameter or [], {"scale": scale, "seed": seed, "device": device})
    project = _project()
    if show_list:
        _show_list(project)
        return
    notebooks = project.resolve(targets or [])
    _device(device, here=dask is None)

    from implicitreg.reproduce import planning, report, runner, runs

    settings = planning.Settings(scale, seed, device, extra)
    plan = planning.Plan(project, notebooks, settings, output=output, fresh=fresh)
    if dry_run:
        for step in plan.steps:
            what = f"would be executed: {', '.join(step.because)}" if step.because else "would be reused"
            print(f"{step.notebook.name}  {what}")
        return
    done = runner.reproduce(plan, workers=workers, cell_timeout=cell_timeout, scheduler=dask, timed=timed)
    report.show_verdicts(done.judged, {notebook.chapter for notebook in notebooks})
    print(f"notebooks  {shown(done.folder)}")
    print(f"claims     {shown(done.folder / runs.CLAIMS)}", flush=True)
    _fail_with(done.complaints)


def _fail_with(complaints: Sequence[str]) -> None:
    for complaint in complaints:
        _say(complaint)
    if complaints:
        raise typer.Exit(1)


def _chosen(project: Project, name: str | None) -> "Run":
    """Return the run that was named, or the one that is meant; tell the user when it is out of date."""
    from implicitreg.reproduce import runs

    run, remark = runs.default(project) if name is None else (runs.find(project, name), None)
    remark = remark or runs.remark(run)
    if remark:
        _say(f"note: {remark}")
    return run


@app.command()
def verdicts(
    run: RunName = None,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print what claims.json holds.")] = False,
) -> None:
    """Judge the claims by the evidence of a run."""
    from implicitreg.reproduce import report, runs, storage

    project = _project()
    chosen = _chosen(project, run)
    judged = runs.judge(project, chosen.notebooks, chosen.scale)
    if json:
        print(storage.to_json(runs.claims_json(chosen.environment, judged)), end="")
    else:
        print(f"{chosen.name}, scale {chosen.scale}")
        report.show_verdicts(judged)


@app.command()
def render(run: RunName = None) -> None:
    """Build the book from the notebooks of a run."""
    from implicitreg.reproduce import rendering

    project = _project()
    chosen = _chosen(project, run)
    page = rendering.render(project, chosen)
    print(f"{chosen.name}: {page.as_uri()}")


@app.command()
def pdf() -> None:
    """Print the rendered book as one PDF, with Chromium."""
    from implicitreg.reproduce import printing

    print(printing.print_book(_project(), tell=_say).as_uri())


@app.command()
def record(targets: Targets = None, *, workers: Workers = None, cell_timeout: CellTimeout = None) -> None:
    """Put the outputs of scale book, seed 0, into the book."""
    project = _project()
    notebooks = project.resolve(targets or [])

    from implicitreg.reproduce import recording, report

    try:
        done, changed = recording.record(project, notebooks, workers=workers, cell_timeout=cell_timeout)
    except recording.RefusedError as refused:
        for line in refused.lines:
            _say(line)
        raise
    _fail_with(done.complaints)
    report.show_verdicts(done.judged, {notebook.chapter for notebook in notebooks})
    print(f"changed: {listed(map(shown, changed))}")


@app.command()
def keep(run: Annotated[str, typer.Argument(metavar="RUN")]) -> None:
    """Keep the claims of a run larger than book beside the recorded ones."""
    from implicitreg.reproduce import recording

    project = _project()
    for path in recording.keep(project, _chosen(project, run)):
        print(f"kept: {shown(path)}")


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="RUN")], after: Annotated[str, typer.Argument(metavar="RUN")]
) -> None:
    """Show which claims moved between two runs."""
    from implicitreg.reproduce import report, runs

    project = _project()
    first, second = _chosen(project, before), _chosen(project, after)
    judged = [runs.judge(project, run.notebooks, run.scale) for run in (first, second)]
    report.show_difference((first.name, second.name), *judged)


@app.command()
def verify(
    targets: Targets = None,
    *,
    twice: Annotated[
        bool,
        typer.Option(
            "--twice", help="Execute twice, then on the plainest code path; else compare with what is recorded."
        ),
    ] = False,
    scale: Annotated[str, typer.Option(help="smoke, book or paper.")] = "book",
    seed: Annotated[int, typer.Option(min=0, help="Of both executions.")] = 0,
    workers: Workers = None,
    dask: Dask = None,
) -> None:
    """Execute notebooks anew, and list each printed number and claim that moved."""
    _check(scale, workers, dask)
    if not twice and (scale, seed) != ("book", 0):
        raise UsageError("what is recorded is of scale book, seed 0: give --twice to compare two executions of another")
    project = _project()
    notebooks = project.resolve(targets or [])

    from implicitreg.reproduce import planning, report, verifying

    settings = planning.Settings(scale, seed)
    compared = verifying.verify(project, notebooks, twice=twice, settings=settings, workers=workers, scheduler=dask)
    for comparison in compared:
        report.show_comparison(comparison)
    if not all(comparison.same for comparison in compared):
        raise typer.Exit(1)


@app.command()
def measure(
    network: Annotated[str, typer.Argument(metavar="FILE:FACTORY", help="What builds the network; it is executed.")],
    *,
    data: Annotated[str, typer.Option(metavar="digits|mnist|FILE.npz", help="What to measure it on.")],
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A state_dict; never loaded by executing what is in it.")
    ] = None,
    measures: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Some measures, such as margin,layers; all by default. A wrong name shows which there are.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="How many, drawn where there are more.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; auto is where the network is built.")] = "auto",
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON; null where a value is infinite or undefined.")
    ] = False,
) -> None:
    """Measure a network of your own: margins, norms, ranks, sharpness, curvature."""
    _device(device)

    from implicitreg.measures import report
    from implicitreg.reproduce import measuring, storage

    model = measuring.network(network, seed)
    if checkpoint is not None:
        measuring.restore(model, checkpoint)
    if device != "auto":
        model.to(device)
    x, y = measuring.samples(data, model, samples, seed)
    chosen = None if measures is None else [name.strip() for name in measures.split(",")]
    try:
        found = report(model, x, y, measures=chosen, seed=seed)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None
    if json:
        print(storage.to_json(found.to_dict()), end="")
    else:
        from rich.console import Console

        Console().print(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line.

    Parameters
    ----------
    arguments
        The words after the program's name; those of this process by default.

    Returns
    -------
    int
        The exit status.
    """
    command = typer.main.get_command(app)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows only ASCII is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    logging.getLogger("implicitreg").handlers[:] = [_Notes()]
    try:
        # Not command(): it would print its own complaints, in boxes of several lines.
        with command.make_context("implicitreg", list(sys.argv[1:] if arguments is None else arguments)) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as exit_:
        return exit_.exit_code
    except KeyboardInterrupt:
        _say("interrupted; the same command again takes up what has not finished")
        return 130
    except CommandError as error:
        _say(str(error))
        return error.code
    except ModuleNotFoundError as error:
        extras = [extra for extra, tools in _TOOLS.items() if error.name in tools]
        if not extras:
            raise
        _say(f"{error.name} is not installed: pip install 'implicitreg[{extras[0]}]'")
        return 2
    except BrokenPipeError:
        # Whoever read has read enough; Python must not complain of it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        _say(str(error))
        return 1
    except Exception as error:
        # The parser's complaints; typer brings its own copy of click, so that they share no public class.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        _say(_with_commands(message()))
        return 2
    return 0


def _with_commands(message: str) -> str:
    if re.match("No such command", message):
        names = [info.callback.__name__ for info in app.registered_commands if info.callback]
        message = f"{message.rstrip('.')}; commands: {listed(names)}"
    return message


if __name__ == "__main__":
    sys.exit(main())
