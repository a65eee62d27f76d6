"""What a paper claims, what was measured, and the verdict that follows.

Claims stand in ``book/<folder>/claims.yml``; a notebook records its measurements through a `Ledger`; `judge`
compares the two. Nothing here imports torch or notebook machinery: evidence is plain JSON in the metadata of a
notebook's outputs, so that any executed copy can be judged later without running it.
"""

from implicitreg.claims.evidence import MIME, Evidence, recorded
from implicitreg.claims.ledger import Ledger, Record
from implicitreg.claims.rules import AtLeast, AtMost, Excludes, Ordered, Rule, Within
from implicitreg.claims.schema import SCALES, Claim, ClaimError, ClaimFile, load, load_all, load_chapters
from implicitreg.claims.statistics import Statistic, summarise
from implicitreg.claims.verdicts import VERDICTS, Judgement, judge, judge_notebooks

__all__ = [
    "MIME",
    "SCALES",
    "VERDICTS",
    "AtLeast",
    "AtMost",
    "Claim",
    "ClaimError",
    "ClaimFile",
    "Evidence",
    "Excludes",
    "Judgement",
    "Ledger",
    "Ordered",
    "Record",
    "Rule",
    "Statistic",
    "Within",
    "judge",
    "judge_notebooks",
    "load",
    "load_all",
    "load_chapters",
    "recorded",
    "summarise",
]
