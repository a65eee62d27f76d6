"""Which paper a routine of the library comes from, as BibTeX."""

import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

# In an installed wheel the bibliography lies beside this file, in a checkout in the book.
_PLACES = (Path(__file__).parent / "references.bib", Path(__file__).parents[2] / "book" / "references.bib")

SOURCES: dict[str, tuple[str, ...]] = {
    "DDPSGD": ("neyshabur2016ddp",),
    "PathSGD": ("neyshabur2015path", "neyshabur2016rnn"),
    "ReLURecurrent": ("neyshabur2016rnn",),
    "balanced_flow": ("arora2018", "razin2020"),
    "bridge_test": ("kubo2019",),
    "capacities": ("neyshabur2017exploring",),
    "cp_rank": ("razin2020", "kolda2009"),
    "data_path_scales": ("neyshabur2016ddp",),
    "distance_from_rank": ("eckart1936",),
    "effective_rank": ("roy2007",),
    "expected_breakpoints": ("kubo2019", "edelman1995"),
    "expected_deflection": ("kubo2019",),
    "expected_gap_deviation": ("kubo2019",),
    "expected_non_straightness": ("kubo2019",),
    "expected_sharpness": ("neyshabur2017exploring",),
    "expected_total_gap_variance": ("kubo2019",),
    "frobenius_product": ("neyshabur2015colt",),
    "geometric_complexity": ("dherin2022",),
    "gradient_descent": ("razin2020", "arora2018"),
    "group_norm": ("neyshabur2015colt",),
    "group_rmsprop": ("razin2020", "arora2019"),
    "hessian_eigenvalues": ("pearlmutter1994", "lehoucq1998"),
    "hessian_trace": ("hutchinson1989", "meyer2021"),
    "layer_norms": ("rudelson2007", "roy2007"),
    "linear_rademacher": ("neyshabur2015colt",),
    "margin": ("neyshabur2017exploring",),
    "margins": ("neyshabur2017exploring",),
    "nngp_kernel": ("cho2009", "lee2018"),
    "norm_ball_bound": ("neyshabur2015colt",),
    "pac_bayes_kl": ("neyshabur2017exploring",),
    "pac_bayes_kl_at": ("neyshabur2017exploring",),
    "path_norm": ("neyshabur2015colt",),
    "path_scales": ("neyshabur2015path",),
    "rademacher_complexity": ("neyshabur2015colt",),
    "reconstruction_error": ("razin2020",),
    "rescale_nodes": ("neyshabur2015colt",),
    "sampled_straightness": ("kubo2019",),
    "segment_profile": ("kubo2019",),
    "segment_profiles": ("kubo2019",),
    "shared_path_scales": ("neyshabur2016rnn",),
    "sharpness": ("keskar2017", "neyshabur2017exploring"),
    "spectral_product": ("neyshabur2017exploring",),
    "straightness": ("kubo2019",),
    "truncated_cross_entropy": ("neyshabur2015search",),
    "two_layer_rademacher": ("neyshabur2015colt",),
    "width_exponent": ("neyshabur2015colt",),
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
        raise ValueError(f"routine: must be one of the functions {', '.join(sorted(SOURCES))}, got {name}")
    return bibtex(SOURCES[name])
