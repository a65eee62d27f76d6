"""From evidence to verdict. A verdict is never stored with the evidence: it is computed where it is shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from implicitreg.claims.evidence import Evidence, recorded
from implicitreg.claims.rules import Rule
from implicitreg.claims.schema import Claim, ClaimError, Verdict
from implicitreg.claims.statistics import Statistic, control_of, summarise

VERDICTS: tuple[str, ...] = get_args(Verdict)

# Fewer standard errors than this between the statistic and the threshold: the verdict is shown as fragile.
STEADY = 3.0


@dataclass(frozen=True)
class Judgement:
    """A claim, what was measured, and the verdict.

    Attributes
    ----------
    claim, scale
        What was judged, and where.
    verdict
        One of `VERDICTS`.
    measured
        The judged statistic; ``None`` where nothing is recorded.
    control
        The same statistic of the negative control.
    control_rejected
        Whether the rule rejects the control, as it must.
    margin_se
        Distance of the statistic from the rule's threshold in standard errors; ``None`` where it has none.
    """

    claim: Claim
    scale: str
    verdict: Verdict
    measured: Statistic | None = None
    control: float | None = None
    control_rejected: bool | None = None
    margin_se: float | None = None

    @property
    def fragile(self) -> bool:
        """Whether the statistic is less than three standard errors from the threshold."""
        return self.margin_se is not None and self.margin_se < STEADY

    @property
    def expected(self) -> bool:
        """Whether the verdict is the one that the claim file expects, or the claim is not recorded at this scale."""
        if self.verdict == "not run":
            return self.scale not in self.claim.scales
        return self.verdict == self.claim.expected

    def record(self, *, notebook: str | None = None, seconds: float | None = None) -> dict[str, Any]:
        """Return the entry of a ``claims.json``.

        Parameters
        ----------
        notebook
            Short name of the notebook that recorded the evidence, such as ``rank/flow``.
        seconds
            What the recording cell took; left out when ``None``.
        """
        claim, measured = self.claim, self.measured
        here = self.scale in claim.scales
        entry: dict[str, Any] = {
            "id": claim.id,
            "number": claim.number,
            "paper": claim.paper,
            "locator": claim.locator,
            "source": claim.source,
            "statement": claim.statement,
            "kind": claim.kind,
            "published": claim.published[self.scale].model_dump(by_alias=True) if here else None,
            "measured": measured
            and {
                "value": measured.value,
                "interval": [measured.low, measured.high],
                "n": measured.n,
                "statistic": measured.statistic,
                "margin_se": self.margin_se,
            },
            "accept": claim.accept[self.scale].model_dump() if here else None,
            "control": {"what": claim.control.what, "value": self.control, "rejected": self.control_rejected},
            "verdict": self.verdict,
            "expected": claim.expected,
            "notebook": notebook,
        }
        return entry if seconds is None else {**entry, "seconds": seconds}


def judge(claim: Claim, evidence: Evidence | None, scale: str) -> Judgement:
    """Decide one claim.

    In this order: nothing recorded gives ``not run``; a rule that accepts any part of the control's interval too (the
    range of its samples, where the statistic is an extreme) gives ``unguarded``;
    the whole 95 % interval meets ``accept``: ``reproduced``; it meets ``direction``: ``reproduced in direction``;
    it lies wholly on the wrong side (of ``direction`` where there is one, else of ``accept``): ``differs``;
    else ``not reproduced``.

    Parameters
    ----------
    claim
        The claim, with its rule.
    evidence
        What was recorded, or ``None``.
    scale
        Whose rule holds.

    Returns
    -------
    Judgement

    Raises
    ------
    ClaimError
        The evidence belongs to another claim or scale, has too few samples, or has the wrong form.
    """
    if evidence is None:
        return Judgement(claim, scale, "not run")
    if evidence.id != claim.id:
        raise ClaimError(f"{claim.id}: got the evidence of {evidence.id}")
    if evidence.scale != scale:
        raise ClaimError(f"{claim.id}: the evidence is of scale {evidence.scale!r}, not {scale!r}")
    if scale not in claim.scales:
        raise ClaimError(f"{claim.id}: is not recorded at scale {scale!r}, only at {', '.join(claim.scales)}")
    rule, seeds = claim.accept[scale], claim.seeds[scale]
    if len(evidence.samples) < seeds:
        raise ClaimError(f"{claim.id}: samples: {len(evidence.samples)} given, {seeds} seeds needed at scale {scale!r}")
    try:
        measured = summarise(rule.reduce(evidence.samples), rule.of)
        control = control_of(rule.reduce(evidence.control), rule.of)
    except (ValueError, TypeError, IndexError) as error:
        raise ClaimError(f"{claim.id}: samples and control do not suit the statistic {rule.of!r}: {error}") from None
    margin = None
    if measured.standard_error:
        margin = rule.distance(measured.value) / measured.standard_error

    def rejected(by: Rule) -> bool:
        return by.misses(control.low, control.high)

    weakest = claim.direction or rule
    verdict: Verdict
    if not rejected(rule):
        verdict = "unguarded"
    elif rule.meets(measured.low, measured.high):
        verdict = "reproduced"
    elif claim.direction is not None and claim.direction.meets(measured.low, measured.high):
        # The weaker rule decides here: it too must reject the control.
        verdict = "reproduced in direction" if rejected(claim.direction) else "unguarded"
    elif weakest.misses(measured.low, measured.high):
        verdict = "differs"
    else:
        verdict = "not reproduced"
    return Judgement(claim, scale, verdict, measured, control.value, rejected(rule), margin)


def judge_notebooks(
    claims: Mapping[str, Claim], notebooks: Mapping[str, Mapping[str, Any]], scale: str
) -> list[tuple[Judgement, str | None, int | None]]:
    """Judge every claim by the evidence in a set of executed notebooks.

    Parameters
    ----------
    claims
        Full id to claim.
    notebooks
        Short name, such as ``rank/flow``, to the notebook as plain JSON data.
    scale
        The scale of the run.

    Returns
    -------
    list of (Judgement, str or None, int or None)
        For every claim, in order: its judgement, and the notebook and cell that recorded it.

    Raises
    ------
    ClaimError
        A claim is recorded twice, or under an unknown id, or its evidence is malformed.
    """
    found: dict[str, tuple[Evidence, str, int]] = {}
    for name, notebook in notebooks.items():
        try:
            entries = recorded(notebook)
        except ValueError as error:
            raise ClaimError(f"{name}: {error}") from None
        for cell, evidence in entries:
            if evidence.id not in claims:
                raise ClaimError(f"{name}: cell {cell}: unknown claim {evidence.id!r}")
            if evidence.id in found:
                raise ClaimError(f"{name}: cell {cell}: {evidence.id} is recorded already in {found[evidence.id][1]}")
            found[evidence.id] = evidence, name, cell
    verdicts: list[tuple[Judgement, str | None, int | None]] = []
    for claim in claims.values():
        if claim.id in found:
            evidence, name, cell = found[claim.id]
            verdicts.append((judge(claim, evidence, scale), name, cell))
        else:
            verdicts.append((judge(claim, None, scale), None, None))
    return verdicts
