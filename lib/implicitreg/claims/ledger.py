"""The notebook's side: open the chapter's claims, record what was measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from implicitreg.claims.evidence import MIME, Evidence
from implicitreg.claims.rules import number
from implicitreg.claims.schema import SCALES, Claim, ClaimError, ClaimFile, load
from implicitreg.claims.statistics import Statistic
from implicitreg.claims.verdicts import Judgement, judge

# Far from the book: the copy that an installed wheel carries, or the checkout that an editable install points to.
PACKAGED = Path(__file__).parent / "book"
CHECKOUT = Path(__file__).parents[3] / "book"


def _find(folder: str) -> Path:
    """Return the folder's ``claims.yml``, looked for upward from the working directory, then where it was installed."""
    for place in (here := Path.cwd(), *here.parents):
        beside = [place / "claims.yml"] if place.name == folder else []
        for path in (*beside, place / folder / "claims.yml", place / "book" / folder / "claims.yml"):
            if path.is_file():
                return path
    for book in (PACKAGED, CHECKOUT):
        if (path := book / folder / "claims.yml").is_file():
            return path
    known = sorted(p.parent.name for p in PACKAGED.glob("*/claims.yml"))
    raise ClaimError(
        f"folder: no claims.yml of {folder!r} upward from {here}"
        + (f"; the installed package carries: {', '.join(known)}" if known else "")
    )


def _plain(values: Any, name: str, claim: str) -> list[Any]:
    """Return tensors, arrays, tuples and numbers as nested lists of Python floats."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, (int, float)) and not isinstance(values, bool):
        values = [values]
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, dict)):
        raise ClaimError(f"{claim}: {name}: must be numbers, one per seed")
    return [
        float(v)
        if (isinstance(v, (int, float)) and not isinstance(v, bool)) or getattr(v, "ndim", None) == 0
        else _plain(v, name, claim)
        for v in values
    ]


ROUND_OFF = 1e-12  # what a few hundred operations in float64 leave of a zero


def measured_words(claim: Claim, measured: Statistic, scale: str) -> str:
    """Return a measured statistic with its interval and n, as tables print it.

    Where the claim is an identity, or the values are, the digits are those of round-off and differ between machines:
    only whether the tolerance holds is told.
    """
    rule = claim.accept[scale]
    count = "" if measured.statistic == "value" else f" (n = {measured.n})"
    exact = claim.kind == "identity" or 0 <= measured.low < measured.high < ROUND_OFF
    if exact and rule.rule == "at_most" and rule.meets(measured.low, measured.high):
        return f"{rule.words()}{count}"
    text, low, high = (number(v, rule.digits) for v in (measured.value, measured.low, measured.high))
    if measured.statistic == "value":
        return text
    kind = "range" if measured.statistic in ("min", "max") else "95 %"
    return f"{measured.statistic} {text}, {kind} {low} to {high}, n = {measured.n}"


@dataclass(frozen=True)
class Record:
    """What a cell shows when it records a claim: a small table, with the evidence in the output's metadata."""

    judgement: Judgement
    evidence: Evidence

    def rows(self) -> list[tuple[str, str]]:
        """Return the table's rows, heading and text."""
        claim, scale, measured = self.judgement.claim, self.judgement.scale, self.judgement.measured
        assert measured is not None
        assert self.judgement.control is not None
        published = claim.published[scale]
        rows = [(claim.number, claim.statement), ("measure", claim.measure)]
        if published.value is not None:
            value = published.value if isinstance(published.value, str) else number(published.value)
            unit = f" {published.unit}" if published.unit else ""
            origin = f" ({published.origin})" if published.origin else ""
            rows.append(("published", f"{value}{unit}{origin}"))
        rows.append(("measured", measured_words(claim, measured, scale)))
        rows.append(("control", f"{number(self.judgement.control)}: {claim.control.what}"))
        return rows

    def __str__(self) -> str:
        return str(self._repr_mimebundle_()[0]["text/plain"])

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        rows = self.rows()
        width = max(len(head) for head, _ in rows)
        plain = "\n".join(f"{head:<{width}}  {text}" for head, text in rows)
        body = "".join(f"<tr><th>{escape(head)}</th><td>{escape(text)}</td></tr>" for head, text in rows)
        anchor = self.evidence.id.replace(".", "-")
        html = f'<table class="dataframe claim" id="claim-{anchor}">{body}</table>'
        return {"text/html": html, "text/plain": plain}, {MIME: self.evidence.to_json()}


class Ledger:
    """Records what a notebook measures for the claims of one chapter.

    Parameters
    ----------
    file
        The chapter's claims.
    scale
        The scale of this run: ``smoke``, ``book`` or ``paper``.

    Examples
    --------
    >>> ledger = Ledger.open("rank")
    >>> shown = ledger.record("minimum-value", samples=2e-16, control=0.25)
    >>> shown.judgement.verdict
    'reproduced'
    >>> ledger.record("minimum-value", samples=2e-16, control=0.25)
    Traceback (most recent call last):
        ...
    implicitreg.claims.schema.ClaimError: rank.minimum-value: recorded already; open the ledger again to start over
    """

    def __init__(self, file: ClaimFile, scale: str = "book"):
        if scale not in SCALES:
            raise ClaimError(f"scale: {scale!r} is not one of {', '.join(SCALES)}")
        self.file = file
        self.scale = scale
        self._recorded: set[str] = set()

    @classmethod
    def open(cls, folder: str, scale: str = "book") -> "Ledger":
        """Open the ledger of a chapter.

        Parameters
        ----------
        folder
            The chapter's folder, such as ``"rank"``. Its ``claims.yml`` is looked for upward from the working
            directory, then where the package was installed from.
        scale
            The scale of this run.

        Raises
        ------
        ClaimError
            No such file, a malformed file, or an unknown scale.
        """
        return cls(load(_find(folder)), scale)

    def record(self, key: str, *, samples: Any, control: Any) -> Record:
        """Record one claim: the last expression of a cell.

        Parameters
        ----------
        key
            The claim's key in ``claims.yml``; its full id, ``<folder>.<key>``, will do too.
        samples
            What was measured, one per seed: numbers, or sequences where the rule is ``ordered``, or pairs
            ``[x, y]`` where the statistic is ``slope``. Lists, arrays and tensors will do.
        control
            The same of the negative control.

        Returns
        -------
        Record
            Shows itself as a table; carries the evidence.

        Raises
        ------
        ClaimError
            An unknown key, a claim recorded before, one not recorded at this scale, too few seeds, or a sample
            that is not finite.
        """
        key = key.removeprefix(f"{self.file.folder}.")
        claim = self.file.claims.get(key)
        if claim is None:
            raise ClaimError(f"key: no claim {key!r} in {self.file.path}; known: {', '.join(self.file.claims)}")
        if key in self._recorded:
            raise ClaimError(f"{claim.id}: recorded already; open the ledger again to start over")
        data = {
            "id": claim.id,
            "scale": self.scale,
            "samples": _plain(samples, "samples", claim.id),
            "control": _plain(control, "control", claim.id),
        }
        try:
            evidence = Evidence.from_json(data)
        except ValueError as error:
            raise ClaimError(str(error)) from None
        judgement = judge(claim, evidence, self.scale)
        self._recorded.add(key)
        return Record(judgement, evidence)
