"""Which paper a routine of the library comes from, as BibTeX."""

import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

# In an installed wheel the bibliography lies beside this file, in a checkout in the book.
_PLACES = (Path(__file__).parent / "references.bib", Path(__file__).parents[2] / "book" / "references.bib")

SOURCES: dict[str, tuple[str, ...]] = {
    "capacities": ("neyshabur2017exploring",),
    "effective_rank": ("roy2007",),
    "expected_sharpness": ("neyshabur2017exploring",),
    "frobenius_product": ("neyshabur2015colt",),
    "geometric_complexity": ("dherin2022",),
    "group_norm": ("neyshabur2015colt",),
    "hessian_eigenvalues": ("pearlmutter1994",),
    "hessian_trace": ("pearlmutter1994", "meyer2021"),
    "layer_norms": ("neyshabur2017exploring", "roy2007"),
    "margin": ("neyshabur2017exploring",),
    "margins": ("neyshabur2017exploring",),
    "pac_bayes_kl": ("neyshabur2017exploring",),
    "pac_bayes_kl_at": ("neyshabur2017exploring",),
    "path_norm": ("neyshabur2015colt",),
    "path_scales": ("neyshabur2015path",),
    "sampled_straightness": ("kubo2019",),
    "segment_profile": ("kubo2019",),
    "segment_profiles": ("kubo2019",),
    "sharpness": ("keskar2017", "neyshabur2017exploring"),
    "shared_path_scales": ("neyshabur2016rnn",),
    "spectral_product": ("neyshabur2017exploring",),
    "straightness": ("kubo2019",),
}
"""Name of a public routine to the keys of its papers in the bibliography."""


@cache
def bibliography() -> dict[str, str]:
    """Return the BibTeX entries of the book's bibliography, key to entry."""
    text = next(path for path in _PLACES if path.is_file()).read_text("utf-8")
    entries = re.finditer(r"^@\w+\{(\w+),.*?^\}", text, re.MULTILINE | re.DOTALL)
    return {entry[1]: entry[0] for entry in entries}


def short(key: str) -> str:
    """Return authors and year as a text cites them.

    Examples
    --------
    >>> short("kubo2019"), short("roy2007"), short("pearlmutter1994")
    ('Kubo et al. 2019', 'Roy & Vetterli 2007', 'Pearlmutter 1994')
    """
    entry = bibliography()[key]
    authors, year = (_field(entry, name) for name in ("author", "year"))
    names = [author.split(",")[0] for author in authors.split(" and ")]
    who = names[0] if len(names) == 1 else " & ".join(names) if len(names) == 2 else f"{names[0]} et al."
    return f"{who} {year}"


def _field(entry: str, name: str) -> str:
    found = re.search(rf"^\s*{name}\s*=\s*\{{(.*)\}},?$", entry, re.MULTILINE)
    assert found is not None
    return found[1]


def bibtex(keys: Iterable[str]) -> str:
    """Return some entries of the bibliography, each once, in this order."""
    return "\n\n".join(bibliography()[key] for key in dict.fromkeys(keys))


def cite(routine: Callable[..., Any]) -> str:
    """Return the BibTeX of the papers that a routine of this library comes from.

    Parameters
    ----------
    routine
        A public function, such as `implicitreg.measures.path_norm`.

    Returns
    -------
    str
        One or more entries, as they stand in the book's bibliography.

    Raises
    ------
    ValueError
        It is no routine of this library, or one that comes from no paper.

    Examples
    --------
    >>> from implicitreg.measures import path_norm
    >>> print(cite(path_norm).splitlines()[2])
      title     = {Norm-Based Capacity Control in Neural Networks},
    """
    name = getattr(routine, "__name__", repr(routine))
    if not getattr(routine, "__module__", "").startswith("implicitreg.") or name not in SOURCES:
        raise ValueError(f"routine: must be one of {', '.join(sorted(SOURCES))}, got {name}")
    return bibtex(SOURCES[name])
