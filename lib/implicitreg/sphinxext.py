"""What the book's pages may quote: measured numbers, verdicts, recorded figures, and the environment of the run.

The evidence lies in the notebooks' outputs. It is gathered while a notebook is parsed (`Mime`, called by myst-nb),
so that pages always quote the notebooks of this very build; it is judged against ``book/*/claims.yml`` when a page
is written. Nothing here stores a verdict or a number.

Roles
    ``{measured}`rank.norm-diverges``` or ``{measured}`rank.norm-diverges:.2f```
        The measured number, with the digits that its interval supports or in the given format; links to the cell.
    ``{verdict}`rank.norm-diverges```
        The verdict as a badge; links to the cell.
    ``{source}`recalled```
        The tag that says where a statement comes from.
    ``{verdict-badge}`reproduced```
        A badge that belongs to no claim, for explanations.

Directives
    ``{verdicts} [CHAPTER]``
        The verdict table of a chapter, or of the whole book.
    ``{verdict-counts} [CHAPTER]``
        How many claims got which verdict, in one line.
    ``{recorded-figure} NAME``
        A figure that a notebook showed under this name; the content is the caption here.
    ``{environment}``
        The environment that the evidence was measured in.

Every unknown name is a warning that lists the known ones, and fails the build, with ``-W`` or without.
"""

import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import unescape
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from myst_nb.core.render import create_figure_context
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors import EnvironmentCollector
from sphinx.errors import ExtensionError
from sphinx.ext.mathjax import MATHJAX_URL
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.typing import ExtensionMetadata

from implicitreg import __version__
from implicitreg.claims import (
    MIME,
    VERDICTS,
    Claim,
    ClaimError,
    Evidence,
    Judgement,
    Rule,
    Statistic,
    judge,
    load_all,
)
from implicitreg.claims.ledger import measured_words
from implicitreg.claims.rules import number

logger = logging.getLogger(__name__)

# To be raised whenever the structure of what is kept in the (pickled) environment changes.
ENV_VERSION = 1

SOURCES = {
    "paper": "read in the paper itself",
    "author": "read in an author's code, slides, poster or blog post",
    "secondary": "read elsewhere",
    "recalled": "from general knowledge of the paper, not verified against its text",
    "derived": "derived here, and checked numerically",
    "measured": "a value from an earlier run of our own: it guards the computation, and says nothing of the paper",
}

MEANINGS = {
    "reproduced": "the whole interval meets the rule, and the rule rejects the control",
    "reproduced in direction": "only the weaker rule, the right sign or order, is met",
    "not reproduced": "the interval is neither wholly accepted nor wholly refused",
    "differs": "the whole interval lies on the wrong side of the rule",
    "unguarded": "the rule accepts the negative control too, so it decides nothing",
    "not run": "nothing is recorded for this claim",
}


# ---------------------------------------------------------------------------------------------------------------------
# What is known: claims from the chapters' files, evidence and figures from the notebooks of this build


_complaints: list[str] = []  # of the build that is running; they fail it, with or without -W


def _warn(message: str, location: Any) -> None:
    _complaints.append(message)
    logger.warning(message, location=location, type="implicitreg")


def _begin(app: Sphinx) -> None:
    _complaints.clear()


def _fail(app: Sphinx, error: Exception | None) -> None:
    """Fail the build on any complaint of ours: a page with a wrong quotation is worse than no page."""
    if _complaints:
        app.statuscode = app.statuscode or 1


@lru_cache(maxsize=4)
def _load(book: Path, stamp: tuple[tuple[str, int], ...]) -> dict[str, Claim]:
    """Read all claims once for each state (``stamp``) of the files."""
    return load_all(book)


def _claims(env: BuildEnvironment) -> dict[str, Claim]:
    """Return the claims of the book, full id to claim."""
    book = Path(env.srcdir, "book")
    return _load(book, tuple((str(p), p.stat().st_mtime_ns) for p in sorted(book.glob("*/claims.yml"))))


def _kept(env: BuildEnvironment, name: str) -> dict[str, list[Any]]:
    """Return what is kept under ``name`` for each document: evidence, figures or quotes, as plain data."""
    attribute = f"implicitreg_{name}"
    if not hasattr(env, attribute):
        setattr(env, attribute, defaultdict(list))
    kept: dict[str, list[Any]] = getattr(env, attribute)
    return kept


KEPT = ("evidence", "figures", "quotes")


def _quotes(env: BuildEnvironment, claims: Iterable[Claim] = ()) -> None:
    """Note that the current document quotes, and is to be read again when a file of these claims changes."""
    _kept(env, "quotes")[env.docname] = [True]
    for folder in {c.folder for c in claims}:
        env.note_dependency(f"book/{folder}/claims.yml")


@dataclass(frozen=True)
class Book:
    """Everything the pages may quote, at the time of writing.

    Attributes
    ----------
    claims
        Full id to claim.
    evidence
        Full id to the document that recorded it and the evidence.
    figures
        Name to the document that showed the figure and what is known of it.
    larger
        Full id to what larger runs than the one shown came to, as their kept evidence and today's rules have it.
    environment
        What the evidence was measured in, with scale and seed. Empty where no ``claims.json`` tells it.
    complaints
        What is wrong with the evidence: a message and the document it concerns.
    """

    claims: Mapping[str, Claim]
    evidence: dict[str, tuple[str, Evidence]] = field(default_factory=dict)
    figures: dict[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    larger: dict[str, list[Judgement]] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    complaints: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, env: BuildEnvironment) -> "Book":
        """Gather what the notebooks of this build recorded."""
        book = cls(_claims(env), environment=_environment(Path(env.srcdir)))
        for docname, entries in sorted(_kept(env, "evidence").items()):
            for entry in entries:
                book._admit(docname, entry)
        for docname, entries in sorted(_kept(env, "figures").items()):
            for entry in entries:
                book.figures.setdefault(entry["name"], (docname, entry))
        for path in sorted(Path(env.srcdir).glob("evidence/*/*/claims.json")):
            book._admit_larger(path, path.relative_to(env.srcdir).as_posix())
        return book

    def _admit_larger(self, path: Path, name: str) -> None:
        try:
            kept = [Evidence.from_json(entry) for entry in json.loads(path.read_text("utf-8"))["evidence"]]
            for evidence in kept:
                if evidence.id not in self.claims:
                    raise ClaimError(f"evidence for unknown claim {evidence.id!r}")
                if evidence.scale != self.scale:
                    judgement = judge(self.claims[evidence.id], evidence, evidence.scale)
                    self.larger.setdefault(evidence.id, []).append(judgement)
        except (ValueError, KeyError, TypeError) as error:
            self.complaints.append((f"{name}: {error}", "book/verdicts"))

    def _admit(self, docname: str, entry: Mapping[str, Any]) -> None:
        try:
            evidence = Evidence.from_json(entry)
            if evidence.id not in self.claims:
                raise ClaimError(f"evidence for unknown claim {evidence.id!r}; known: {_listed(self.claims)}")
            if evidence.id in self.evidence:
                raise ClaimError(f"{evidence.id} is recorded twice: here and in {self.evidence[evidence.id][0]}")
            judge(self.claims[evidence.id], evidence, evidence.scale)
        except ValueError as error:
            self.complaints.append((str(error), docname))
        else:
            self.evidence[evidence.id] = docname, evidence

    @property
    def scale(self) -> str:
        """The scale of the run; ``book`` where nothing says otherwise."""
        return str(self.environment.get("scale", "book"))

    def judgement(self, claim: str) -> Judgement:
        """Judge one claim by what this build's notebooks recorded."""
        if claim in self.evidence:
            evidence = self.evidence[claim][1]
            return judge(self.claims[claim], evidence, evidence.scale)
        return judge(self.claims[claim], None, self.scale)


def _environment(source: Path) -> dict[str, Any]:
    """Return the environment in the ``claims.json`` beside the book: the rendered run's, else the recorded one's."""
    for path in (source / "claims.json", source / "evidence" / "book" / "claims.json"):
        if path.is_file():
            return dict(json.loads(path.read_text("utf-8"))["environment"])
    return {}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


# ---------------------------------------------------------------------------------------------------------------------
# Reading: what myst-nb hands over, roles and directives


class Quote(nodes.General, nodes.Inline, nodes.Element):  # type: ignore[misc]
    """Stands where something will be quoted, until the page is written and all evidence is known.

    ``what`` names one of `WRITERS`; ``claims`` are full ids.
    """


def _quote(what: str, *claims: str, **more: Any) -> Quote:
    return Quote("", what=what, claims=list(claims), **more)


def _source(source: str) -> nodes.Node:
    """Return the tag of a source, with its meaning on hover."""
    return nodes.abbreviation(source, source, explanation=SOURCES[source], classes=["source", f"source-{source}"])


def _badge(verdict: str, text: str) -> nodes.Node:
    """Return a text in the colour, and with the sign, of a verdict."""
    return nodes.inline("", text, classes=["verdict", f"verdict-{verdict.replace(' ', '-')}"])


def _rule_words(rule: Rule) -> str:
    """Return a rule as a phrase, with what it is judged on."""
    if rule.of in ("min", "max"):
        on = "every sample"
    elif rule.of == "value":
        on = "the value"
    else:
        on = f"the whole 95 % interval of the {rule.of}"
    return f"{_pretty(rule.words())}, judged on {on}"


def _math_apart(html: str) -> Iterator[nodes.Node]:
    """Return HTML as raw nodes, with each ``$...$`` in its text as a mathematics node of its own."""
    for index, piece in enumerate(re.split(r"\$([^$<>]+)\$", html)):
        if index % 2:
            yield nodes.math(unescape(piece), unescape(piece))
        elif piece:
            yield nodes.raw("", piece, format="html")


class Mime:
    """Renders a notebook's outputs; myst-nb asks it for each one (entry point ``myst_nb.mime_renderers``).

    - A table whose metadata holds evidence: the evidence is kept, the table is shown with its verdict below.
    - A picture whose metadata holds a caption: a numbered figure with alternative text.
    - The caption that Jupyter shows below such a picture: nothing, the figure has its own.
    """

    mime_priority_overrides: ClassVar[Sequence[tuple[str, str, int | None]]] = ()

    @staticmethod
    def handle_mime(elements: Any, data: Any, inline: bool) -> list[nodes.Node] | None:
        """Return the nodes of one output, or ``None`` where myst-nb's own rendering will do."""
        env = elements.renderer.sphinx_env
        if env is None or inline:
            return None
        meta = data.output_metadata.get(data.mime_type) or {}
        if data.mime_type == "text/html" and MIME in data.output_metadata:
            return Mime._record(elements.renderer, env, data)
        if data.mime_type == "text/markdown" and "caption_of" in meta:
            return []
        if data.mime_type == "image/png":
            return Mime._figure(elements, env, data, meta)
        return None

    @staticmethod
    def _record(renderer: Any, env: BuildEnvironment, data: Any) -> list[nodes.Node]:
        entry = json.loads(json.dumps(data.output_metadata[MIME]))  # from notebook objects to plain data
        _kept(env, "evidence")[env.docname].append(entry)
        table = nodes.container("", *_math_apart(data.string), classes=["output", "text_html", "claim-record"])
        claim = _claims(env).get(str(entry.get("id"))) if isinstance(entry, dict) else None
        if claim is None:
            return [table]  # the check before writing complains
        _quotes(env, [claim])
        line = nodes.paragraph("", "", _quote("verdict", claim.id), classes=["claim-verdict"])
        rule = claim.accept.get(entry.get("scale"))
        if rule is not None:
            line += nodes.Text(f" Rule: {_rule_words(rule)}. Why: ")
            with renderer.current_node_context(line):
                renderer.nested_render_text(rule.reason.rstrip("."), data.line or 0, inline=True)
            line += [nodes.Text(". "), _quote("control-sentence", claim.id)]
        return [table, line]

    @staticmethod
    def _figure(elements: Any, env: BuildEnvironment, data: Any, meta: Mapping[str, Any]) -> list[nodes.Node] | None:
        if not meta.get("alt") or not meta.get("caption") or not meta.get("name"):
            where = f"{env.docname}: cell {data.cell_index}"
            _warn(f"{where}: a picture without alternative text, caption and name; use figures.show", env.docname)
            env.note_reread()
            return None
        (image,) = elements.render_image(data)
        image["alt"] = meta["alt"]
        image["classes"].append("dark-light")
        path, _ = env.relfn2path(image["uri"], env.docname)
        kept = {"name": meta["name"], "uri": path, "alt": meta["alt"], "width": image.get("width")}
        _kept(env, "figures")[env.docname].append(kept)
        box = nodes.Element()
        renderer, options = elements.renderer, {"caption": meta["caption"], "name": meta["name"]}
        with renderer.current_node_context(box), create_figure_context(renderer, options, data.line or 0):
            renderer.current_node.append(image)
        return list(box.children)


class MeasuredRole(SphinxRole):
    """``{measured}`id`` or ``{measured}`id:format``: a number from the evidence."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Leave a placeholder."""
        claim, _, form = self.text.partition(":")
        node = _quote("number", claim.strip(), form=form.strip())
        self.set_source_info(node)
        _quotes(self.env)
        return [node], []


class VerdictRole(SphinxRole):
    """``{verdict}`id``: a badge."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Leave a placeholder."""
        node = _quote("verdict", self.text.strip())
        self.set_source_info(node)
        _quotes(self.env)
        return [node], []


class SourceRole(SphinxRole):
    """``{source}`recalled```: where a statement comes from."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the tag."""
        if self.text not in SOURCES:
            _warn(f"unknown source {self.text!r}; known: {_listed(SOURCES)}", self.get_location())
            self.env.note_reread()
            return [nodes.strong(text=self.text)], []
        return [_source(self.text)], []


class BadgeRole(SphinxRole):
    """``{verdict-badge}`reproduced```: a badge that belongs to no claim."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the badge."""
        if self.text not in VERDICTS:
            _warn(f"unknown verdict {self.text!r}; known: {_listed(VERDICTS)}", self.get_location())
            self.env.note_reread()
        return [_badge(self.text, self.text)], []


class _OfClaims(SphinxDirective):
    """A directive about the claims of one chapter, or of the whole book."""

    optional_arguments = 1

    def chosen(self) -> list[Claim]:
        """Return the claims that are meant; none, and a warning, when the chapter is unknown."""
        claims = list(_claims(self.env).values())
        if self.arguments:
            chapters = sorted({c.folder for c in claims})
            if self.arguments[0] not in chapters:
                _warn(f"no claims of chapter {self.arguments[0]!r}; known: {_listed(chapters)}", self.get_location())
                self.env.note_reread()
            claims = [c for c in claims if c.folder == self.arguments[0]]
        _quotes(self.env, claims)
        return claims


class VerdictCounts(_OfClaims):
    """``{verdict-counts}``: how many claims got which verdict."""

    def run(self) -> list[nodes.Node]:
        """Leave a placeholder."""
        claims = self.chosen()
        return [nodes.paragraph("", "", _quote("counts", *(c.id for c in claims)), classes=["verdict-counts"])]


class VerdictTable(_OfClaims):
    """``{verdicts}``: one table a paper."""

    HEADS = ("Claim", "Statement", "Published", "Measured", "Control", "Verdict")

    def run(self) -> list[nodes.Node]:
        """Build the tables; what depends on the evidence stays a placeholder."""
        claims = self.chosen()
        papers: dict[str, list[Claim]] = {}
        for claim in claims:
            papers.setdefault(claim.paper, []).append(claim)
        tables = [self._table(paper, group) for paper, group in papers.items()]
        return [_quote("surprises", *(c.id for c in claims)), *tables]

    def _table(self, paper: str, claims: list[Claim]) -> nodes.Node:
        cite = f"{{cite:t}}`{paper}`" if "sphinxcontrib.bibtex" in self.env.app.extensions else paper
        count = f"{len(claims)} claim{'s' if len(claims) > 1 else ''}"
        title = nodes.title("", "", *self._inline(f"{cite}: {count}"))
        table = nodes.table("", title, classes=["verdicts"], ids=[f"verdicts-{paper}"])
        group = nodes.tgroup(cols=len(self.HEADS))
        group += [nodes.colspec(colwidth=1) for _ in self.HEADS]
        head = nodes.row()
        head += [nodes.entry("", nodes.paragraph(text=text)) for text in self.HEADS]
        body = nodes.tbody("", *(self._row(claim) for claim in claims))
        group += [nodes.thead("", head), body]
        table += group
        self.set_source_info(table)
        return table

    def _row(self, claim: Claim) -> nodes.Node:
        name = nodes.paragraph("", "", _quote("cell", claim.id), nodes.Text(" "), _source(claim.source))
        statement = nodes.paragraph("", "", *self._inline(claim.statement))
        if claim.locator:
            statement += [nodes.Text(" "), nodes.inline("", claim.locator, classes=["locator"])]
        control = nodes.paragraph("", "", _quote("control", claim.id), *self._inline(claim.control.what))
        cells = (
            name,
            statement,
            nodes.paragraph("", "", _quote("published", claim.id)),
            nodes.paragraph("", "", _quote("measured", claim.id), nodes.Text(" "), _quote("larger", claim.id)),
            control,
            nodes.paragraph("", "", _quote("verdict", claim.id), _quote("rule", claim.id)),
        )
        return nodes.row("", *(nodes.entry("", cell) for cell in cells))

    def _inline(self, text: str) -> list[nodes.Node]:
        found, messages = self.parse_inline(text)
        return [*found, *messages]


class RecordedFigure(SphinxDirective):
    """``{recorded-figure} name``: a notebook's figure on another page; the content is its caption there."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Leave a placeholder in a figure."""
        picture = _quote("picture", figure=self.arguments[0])
        self.set_source_info(picture)
        # The text is a legend, not a caption: the figure has its number where the notebook shows it.
        box = nodes.figure("", picture, classes=["recorded-figure"])
        if self.content:
            box += nodes.legend("", *self.parse_content_to_nodes())
        _quotes(self.env)
        return [box]


class EnvironmentTable(SphinxDirective):
    """``{environment}``: what the evidence was measured on."""

    def run(self) -> list[nodes.Node]:
        """Leave a placeholder."""
        node = _quote("environment")
        self.set_source_info(node)
        _quotes(self.env)
        return [node]


# ---------------------------------------------------------------------------------------------------------------------
# Writing: every placeholder becomes what the evidence says


SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _pretty(text: str) -> str:
    """Set numbers as print does: a true minus, powers of ten, no break before a unit.

    Examples
    --------
    >>> _pretty("min 1.5e-12, range -3 to 4, at most 1e-12")
    'min 1.5×10⁻¹², range −3 to 4, at most 10⁻¹²'
    """

    def power(match: re.Match[str]) -> str:
        mantissa = "" if match[1] == "1" else f"{match[1]}×"
        return f"{mantissa}10{str(int(match[2])).translate(SUPERSCRIPT)}"

    text = re.sub(r"(?<![\w.])(\d[\d.]*)e([+-]?\d+)", power, text)
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    return text.replace(" %", "\N{NO-BREAK SPACE}%").replace("n = ", "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


def _sensible(measured: Statistic) -> str:
    """Return the value with as many digits as its interval supports: at most four, at least one.

    Examples
    --------
    >>> _sensible(Statistic(70.6965, 40.0, 101.0, 8, "mean", 15.0))
    '71'
    >>> _sensible(Statistic(0.50003, 0.4991, 0.5009, 8, "mean", 4e-4))
    '0.5000'
    >>> _sensible(Statistic(0.123456, 0.123456, 0.123456, 1, "value"))
    '0.1235'
    """
    value = measured.value
    reach = 0.0 if measured.standard_error is None else (measured.high - measured.low) / 2
    if reach <= 0 or not 1e-4 <= abs(value) < 1e7:
        return number(value)
    size = math.floor(math.log10(abs(value)))
    digits = min(max(size - math.floor(math.log10(reach)) + 2, 1), 4)
    # Zeros at the end stay: they are measured digits like any other.
    return f"{float(f'{value:.{digits}g}'):,.{max(digits - 1 - size, 0)}f}"


@dataclass(frozen=True)
class Writer:
    """Turns the placeholders of one page into nodes."""

    book: Book
    relative: Callable[[str, str], str]
    docname: str

    def judged(self, node: Quote) -> Judgement:
        """Return the judgement of the one claim that a placeholder is about."""
        (claim,) = node["claims"]
        return self.book.judgement(claim)

    def link(self, claim: str, inner: nodes.Node, title: str | None = None) -> nodes.Node:
        """Return a node as a link to the cell that recorded the claim; the node itself where there is none."""
        if claim not in self.book.evidence:
            return inner
        anchor = f"#claim-{claim.replace('.', '-')}"
        docname = self.book.evidence[claim][0]
        # Within the page the anchor alone: the cell's table carries the id.
        target = anchor if docname == self.docname else self.relative(self.docname, docname) + anchor
        more = {"reftitle": title} if title else {}
        return nodes.reference("", "", inner, internal=True, refuri=target, classes=["claim-link"], **more)

    def number(self, node: Quote) -> list[nodes.Node]:
        """Return a measured number."""
        judgement, form = self.judged(node), node["form"]
        claim, measured = judgement.claim, judgement.measured
        if measured is None:
            if judgement.scale in claim.scales:
                _warn(f"{claim.id} is quoted, but no notebook of this build records it", node)
            return [nodes.inline("", "not run", classes=["not-run"])]
        try:
            text = format(measured.value, form) if form else _sensible(measured)
        except ValueError:
            _warn(f"{claim.id}: {form!r} is no format of a number", node)
            text = "?"
        words = _pretty(f"{claim.number}: {measured_words(claim, measured, judgement.scale)}")
        return [self.link(claim.id, nodes.inline("", _pretty(text), classes=["measured"]), words)]

    def verdict(self, node: Quote) -> list[nodes.Node]:
        """Return a badge, with a mark where the verdict is fragile or not the expected one."""
        judgement = self.judged(node)
        found = [
            self.link(judgement.claim.id, _badge(judgement.verdict, judgement.verdict), MEANINGS[judgement.verdict])
        ]
        if judgement.fragile:
            margin = f"only {judgement.margin_se:.1f} standard errors from the rule's edge"
            mark = nodes.abbreviation("fragile", "fragile", explanation=margin, classes=["fragile"])
            found += [nodes.Text(" "), mark]
        if not judgement.expected:
            text = f"expected: {judgement.claim.expected}"
            found += [nodes.Text(" "), nodes.strong("", text, classes=["surprise"])]
        return found

    def cell(self, node: Quote) -> list[nodes.Node]:
        """Return the claim's number, linked to its cell."""
        (claim,) = node["claims"]
        return [self.link(claim, nodes.inline("", self.book.claims[claim].number, classes=["claim-number"]))]

    def published(self, node: Quote) -> list[nodes.Node]:
        """Return what the paper gives, and where it gives it."""
        judgement = self.judged(node)
        at = judgement.claim.published
        published = at.get(judgement.scale) or next(iter(at.values()))
        if published.value is None:
            return [nodes.inline("", "—", classes=["none"])]
        value = published.value if isinstance(published.value, str) else number(published.value)
        text = nodes.Text(_pretty(value) + (f" {published.unit}" if published.unit else ""))
        if not published.origin:
            return [text]
        return [text, nodes.inline("", f" {published.origin}", classes=["locator"])]

    def measured(self, node: Quote) -> list[nodes.Node]:
        """Return the judged statistic with its interval and n."""
        judgement = self.judged(node)
        if judgement.measured is None:
            return [nodes.inline("", "—", classes=["none"])]
        return [nodes.Text(_pretty(measured_words(judgement.claim, judgement.measured, judgement.scale)))]

    def larger(self, node: Quote) -> list[nodes.Node]:
        """Return what larger runs measured, with their verdicts; nothing where there are none."""
        (claim,) = node["claims"]
        found: list[nodes.Node] = []
        for judgement in self.book.larger.get(claim, ()):
            if judgement.measured is not None:
                words = _pretty(measured_words(judgement.claim, judgement.measured, judgement.scale))
                text = nodes.Text(f"at scale {judgement.scale}: {words} ")
                found.append(
                    nodes.inline("", "", text, _badge(judgement.verdict, judgement.verdict), classes=["larger"])
                )
        return found

    def control(self, node: Quote) -> list[nodes.Node]:
        """Return the control's value, and whether the rule rejects it."""
        judgement = self.judged(node)
        if judgement.control is None:
            return []
        fate = "rejected" if judgement.control_rejected else "accepted too"
        return [nodes.Text(f"{_pretty(number(judgement.control))}, {fate}: ")]

    def control_sentence(self, node: Quote) -> list[nodes.Node]:
        """Return a sentence that says what the rule does to the control."""
        judgement = self.judged(node)
        if judgement.control is None:
            return []
        fate = "rejects the control" if judgement.control_rejected else "accepts the control too, so it decides nothing"
        return [nodes.Text(f"The same rule {fate}.")]

    def rule(self, node: Quote) -> list[nodes.Node]:
        """Return the rule of the claim in words."""
        judgement = self.judged(node)
        accept = judgement.claim.accept
        rule = accept.get(judgement.scale) or next(iter(accept.values()))
        return [nodes.inline("", f" {_pretty(rule.words())}", classes=["locator"])]

    def counts(self, node: Quote) -> list[nodes.Node]:
        """Return how many claims got which verdict."""
        claims: list[str] = node["claims"]
        count: Counter[str] = Counter(self.book.judgement(claim).verdict for claim in claims)
        found: list[nodes.Node] = [nodes.Text(f"{len(claims)} claim{'' if len(claims) == 1 else 's'}:")]
        for verdict in VERDICTS:
            if count[verdict]:
                found += [nodes.Text(" "), _badge(verdict, f"{count[verdict]} {verdict}")]
        return found

    def surprises(self, node: Quote) -> list[nodes.Node]:
        """Return a warning that names the claims whose verdict is not the expected one; nothing when all are."""
        judgements = [self.book.judgement(claim) for claim in node["claims"]]
        wrong = [j for j in judgements if not j.expected]
        if not wrong:
            return []
        items = nodes.bullet_list("")
        for j in wrong:
            name = self.link(j.claim.id, nodes.inline("", f"{j.claim.number} ({j.claim.id})"))
            shown, wanted = (_badge(verdict, verdict) for verdict in (j.verdict, j.claim.expected))
            line = nodes.paragraph("", "", name, nodes.Text(": "), shown, nodes.Text(", expected "), wanted)
            items += nodes.list_item("", line)
        title = f"Not as expected: {len(wrong)} of {len(judgements)} verdicts"
        box = nodes.admonition("", nodes.title(title, title), items, classes=["warning", "surprises"])
        return [box]

    def picture(self, node: Quote) -> list[nodes.Node]:
        """Return a notebook's picture."""
        known = self.book.figures
        if node["figure"] not in known:
            _warn(f"no recorded figure {node['figure']!r}; known: {_listed(sorted(known))}", node)
            return []
        docname, kept = known[node["figure"]]
        image = nodes.image(uri=kept["uri"], alt=kept["alt"], candidates={"*": kept["uri"]}, classes=["dark-light"])
        if kept["width"]:
            image["width"] = kept["width"]
        target = f"{self.relative(self.docname, docname)}#{nodes.make_id(node['figure'])}"
        return [nodes.reference("", "", image, internal=True, refuri=target)]

    def environment(self, node: Quote) -> list[nodes.Node]:
        """Return the environment as a table of names and values."""
        if not self.book.environment:
            _warn("no environment: there is neither claims.json nor evidence/book/claims.json", node)
            return []
        group = nodes.tgroup("", nodes.colspec(colwidth=1), nodes.colspec(colwidth=3), cols=2)
        body = nodes.tbody()
        for name, value in self.book.environment.items():
            head = nodes.entry("", nodes.paragraph(text=str(name).replace("_", " ")), classes=["stub"])
            body += nodes.row("", head, nodes.entry("", *(nodes.paragraph("", "", *v) for v in _shown(value))))
        group += body
        return [nodes.table("", group, classes=["environment"])]


def _shown(value: Any) -> Iterator[list[nodes.Node]]:
    """Return a value of the environment as lines: hashes cut to 12 digits, mappings one line an entry."""
    if value is None or value in ({}, []):
        yield [nodes.Text("none")]
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            for line in _shown(inner):
                yield [nodes.Text(f"{key}: "), *line]
    elif re.fullmatch(r"(sha256:)?[0-9a-f]{40,}", str(value)):
        yield [nodes.literal(text=str(value).removeprefix("sha256:")[:12])]
    else:
        yield [nodes.Text(str(value))]


WRITERS: dict[str, Callable[[Writer, Quote], list[nodes.Node]]] = {
    "number": Writer.number,
    "verdict": Writer.verdict,
    "cell": Writer.cell,
    "published": Writer.published,
    "measured": Writer.measured,
    "larger": Writer.larger,
    "control": Writer.control,
    "control-sentence": Writer.control_sentence,
    "rule": Writer.rule,
    "counts": Writer.counts,
    "surprises": Writer.surprises,
    "picture": Writer.picture,
    "environment": Writer.environment,
}


class Resolve(SphinxPostTransform):
    """Replaces every placeholder of a page. Runs after myst-nb has chosen each output's form (priority 4)."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        """Replace the placeholders."""
        quotes = list(self.document.findall(Quote))
        if not quotes:
            return
        book = Book.of(self.env)
        writer = Writer(book, self.app.builder.get_relative_uri, self.env.docname)
        for node in quotes:
            unknown = [c for c in node["claims"] if c not in book.claims]
            if unknown:
                _warn(f"unknown claim {unknown[0]!r}; known: {_listed(book.claims)}", node)
                node.replace_self(nodes.strong(text=f"unknown claim {unknown[0]}"))
            else:
                node.replace_self(WRITERS[node["what"]](writer, node))


class Collector(EnvironmentCollector):
    """Keeps what is known right when documents or claim files change, come, go, or are read in parallel."""

    def clear_doc(self, app: Sphinx, env: BuildEnvironment, docname: str) -> None:
        """Forget what a document gave."""
        for name in KEPT:
            _kept(env, name).pop(docname, None)

    def merge_other(self, app: Sphinx, env: BuildEnvironment, docnames: set[str], other: BuildEnvironment) -> None:
        """Take over what another process read."""
        for name in KEPT:
            given = _kept(other, name)
            _kept(env, name).update({docname: given[docname] for docname in docnames if docname in given})

    def get_outdated_docs(
        self, app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
    ) -> list[str]:
        """Have every quoting document read anew when a claim file has come or gone."""
        folders = sorted({claim.folder for claim in _claims(env).values()})
        whole_book = _kept(env, "folders")  # of no document in particular
        known = whole_book.get("", folders)
        whole_book[""] = folders
        return [] if known == folders else sorted(_kept(env, "quotes"))

    def process_doc(self, app: Sphinx, doctree: nodes.document) -> None:
        """Refuse quotes in headings: titles are copied to the sidebar before anything is quoted."""
        for title in doctree.findall(nodes.title):
            for quote in list(title.findall(Quote)):
                _warn("a heading cannot quote the evidence; say it in the text below", title)
                app.env.note_reread()
                quote.replace_self(nodes.strong(text="?"))

    def get_updated_docs(self, app: Sphinx, env: BuildEnvironment) -> list[str]:
        """Check the evidence as a whole, and have every quoting page written anew."""
        for message, docname in Book.of(env).complaints:
            _warn(message, docname)
        return sorted(_kept(env, "quotes"))


# ---------------------------------------------------------------------------------------------------------------------
# Setting up


def _check_claims(app: Sphinx) -> None:
    """Stop with one line when a claim file is malformed."""
    try:
        _claims(app.env)
    except ClaimError as error:
        raise ExtensionError(str(error)) from None


def _local_mathjax(app: Sphinx, config: Config) -> None:
    """Take MathJax from an installed package: one file, no fonts, no network."""
    if config.mathjax_path == MATHJAX_URL:
        config.mathjax_path = "mathjax/tex-svg-full.js"
        app.connect("builder-inited", _copy_mathjax)


def _copy_mathjax(app: Sphinx) -> None:
    if app.builder.format != "html":
        return
    source = files("sphinx-mathjax-offline") / "static" / "mathjax" / "tex-svg-full.js"
    target = Path(app.outdir, "_static", "mathjax", "tex-svg-full.js")
    content = source.read_bytes()
    if not target.is_file() or target.read_bytes() != content:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _repository(app: Sphinx, config: Config) -> None:
    """Name the repository that this build is published from, and add the buttons that link to it.

    A build that publishes runs where ``GITHUB_REPOSITORY`` says which repository it is; elsewhere there is no address
    to link to, and so no button.
    """
    options = config.html_theme_options
    if "launch_buttons" not in options:
        return
    name = os.environ.get("GITHUB_REPOSITORY")
    if name:
        options["repository_url"] = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}"
        options |= dict.fromkeys(("use_repository_button", "use_edit_page_button", "use_issues_button"), True)
    elif not options.get("repository_url"):
        options.pop("repository_url", None)
        options.pop("launch_buttons", None)


def _skip(translator: Any, node: Quote) -> None:
    raise nodes.SkipNode


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register everything with Sphinx."""
    skip = (_skip, None)
    app.add_node(Quote, html=skip, latex=skip, text=skip, man=skip, texinfo=skip)
    app.add_role("measured", MeasuredRole())
    app.add_role("verdict", VerdictRole())
    app.add_role("source", SourceRole())
    app.add_role("verdict-badge", BadgeRole())
    app.add_directive("verdicts", VerdictTable)
    app.add_directive("verdict-counts", VerdictCounts)
    app.add_directive("recorded-figure", RecordedFigure)
    app.add_directive("environment", EnvironmentTable)
    app.add_post_transform(Resolve)
    app.add_env_collector(Collector)
    app.connect("builder-inited", _begin, priority=1)
    app.connect("builder-inited", _check_claims)
    app.connect("build-finished", _fail)
    app.connect("config-inited", _local_mathjax)
    app.connect("config-inited", _repository)
    return {
        "version": __version__,
        "env_version": ENV_VERSION,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
