"""Verdicts as tables that read well in 80 columns, in a terminal and through a pipe."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from implicitreg.reproduce.runs import Judged

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from implicitreg.claims import Judgement
    from implicitreg.reproduce.verifying import Comparison

STYLES = {
    "reproduced": "green",
    "reproduced in direction": "cyan",
    "not reproduced": "yellow",
    "differs": "red",
    "unguarded": "magenta",
    "not run": "dim",
}


def _table(title: str, *columns: str) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _verdict(judgement: "Judgement") -> "Text":
    from rich.text import Text

    text = Text(judgement.verdict, style=STYLES[judgement.verdict])
    if judgement.fragile:
        text.append("\n(fragile)", style="yellow")
    if not judgement.expected:
        text.append(f"\nexpected: {judgement.claim.expected}", style="bold red")
    return text


def _statement(judgement: "Judgement") -> "Group":
    """Return a statement, cut to one line (the page tells it in full), and below it what was measured."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text(judgement.claim.statement, no_wrap=True, overflow="ellipsis")]
    if judgement.measured is not None:
        lines.append(Text(_measured(judgement), style="bold"))
    return Group(*lines)


def _measured(judgement: "Judgement") -> str:
    from implicitreg.claims.ledger import measured_words

    if judgement.measured is None:
        return "-"
    return measured_words(judgement.claim, judgement.measured, judgement.scale)


def _control(judgement: "Judgement") -> str:
    return {None: "-", True: "rejected", False: "accepted"}[judgement.control_rejected]


def show_verdicts(judged: Sequence[Judged], asked: Collection[str] | None = None) -> None:
    """Print a table for each chapter of which something was run, and how many of their claims got which verdict.

    Parameters
    ----------
    judged
        The claims.
    asked
        The chapters to show where nothing was run; all by default.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    folders = dict.fromkeys(one.judgement.claim.folder for one in judged)
    begun = {one.judgement.claim.folder for one in judged if one.judgement.verdict != "not run"}
    begun = begun or {folder for folder in folders if asked is None or folder in asked}
    absent = [folder for folder in folders if folder not in begun]
    judged = [one for one in judged if one.judgement.claim.folder in begun]
    for folder, chapter in groupby(judged, key=lambda one: one.judgement.claim.folder):
        judgements = [one.judgement for one in chapter]
        papers = ", ".join(dict.fromkeys(judgement.claim.paper for judgement in judgements))
        table = _table(f"{folder} ({papers})", "claim", "statement, and what was measured", "control", "verdict")
        for index in (0, 2, 3):
            table.columns[index].no_wrap = True
        for judgement in judgements:
            number, control = judgement.claim.number, _control(judgement)
            table.add_row(number, _statement(judgement), control, _verdict(judgement))
        console.print(table)
    ending = f"; not run: {', '.join(absent)}" if absent else ""
    console.print(Text(_summary(judged) + ending))


def _summary(judged: Sequence[Judged]) -> str:
    counts = Counter(str(one.judgement.verdict) for one in judged)
    parts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in STYLES if counts[verdict])
    unexpected = [one.judgement.claim.id for one in judged if not one.judgement.expected]
    ending = f"not as expected: {', '.join(unexpected)}" if unexpected else "all as expected"
    return f"{len(judged)} claim{'s' * (len(judged) != 1)}: {parts or 'none'}; {ending}"


def _moved(before: "Judgement", after: "Judgement") -> bool:
    """Tell whether a verdict changed, or a value by more than the round-off that two machines differ in."""
    if before.measured is None or after.measured is None:
        return before.measured is not after.measured
    same = math.isclose(before.measured.value, after.measured.value, rel_tol=1e-9, abs_tol=1e-12)
    return before.verdict != after.verdict or not same


def show_difference(names: tuple[str, str], before: Sequence[Judged], after: Sequence[Judged]) -> None:
    """Print which claims moved between two runs, and whether a verdict changed.

    Parameters
    ----------
    names
        The two runs.
    before, after
        Their judgements of the same claims, in the same order.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    pairs = [(a.judgement, b.judgement) for a, b in zip(before, after, strict=True)]
    moved = [(a, b) for a, b in pairs if _moved(a, b)]
    # What only one of two scales records is no change of verdict.
    turned = [a.claim.id for a, b in moved if a.verdict != b.verdict and "not run" not in (a.verdict, b.verdict)]
    if moved:
        table = _table(f"{names[0]} and {names[1]}", "claim", "run", "measured", "verdict")
        for a, b in moved:
            table.add_row(a.claim.id, Text(names[0]), Text(_measured(a)), _verdict(a))
            table.add_row("", Text(names[1]), Text(_measured(b)), _verdict(b))
        console.print(table)
    values = f"{len(moved)} of {len(pairs)} claims moved" if moved else "no value moved"
    verdicts_changed = f"verdicts changed: {', '.join(turned)}" if turned else "no verdict changed"
    console.print(Text(f"{values}; {verdicts_changed}"))


def show_comparison(comparison: "Comparison") -> None:
    """Print every number and every claim that moved between two executions, and what that comes to.

    Parameters
    ----------
    comparison
        The two executions, compared.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    before, after = comparison.names
    if comparison.printed:
        table = _table(f"printed: {before} and {after}", "notebook", "cell", before, after)
        for moved in comparison.printed:
            table.add_row(moved.notebook, str(moved.cell), Text(moved.before), Text(moved.after))
        console.print(table)
    if comparison.claims:
        table = _table(f"claims: {before} and {after}", "claim", "moved by", "verdict")
        for claim in comparison.claims:
            verdict = claim.before if claim.before == claim.after else f"{claim.before} → {claim.after}"
            table.add_row(claim.claim, f"{claim.by:.1g}", Text(verdict))
        console.print(table)
    most = max((claim.by for claim in comparison.claims), default=0.0)
    by = f", by {most:.1g} of their values at most" if comparison.claims else ""
    turned = [claim.claim for claim in comparison.claims if claim.before != claim.after]
    verdicts = f"verdicts changed: {', '.join(turned)}" if turned else "no verdict changed"
    console.print(
        Text(
            f"{before} and {after}: {len(comparison.printed)} of {comparison.compared:,} printed numbers differ; "
            f"{len(comparison.claims)} claims moved{by}; {verdicts}"
        )
    )
