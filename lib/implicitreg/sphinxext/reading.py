"""What myst-nb hands over, the roles and the directives: all leave placeholders, until all evidence is known."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import unescape
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from docutils import nodes
from myst_nb.core.render import create_figure_context
from PIL import Image
from sphinx import addnodes
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective, SphinxRole

from implicitreg.claims import MIME, VERDICTS, Claim, Rule
from implicitreg.sphinxext.known import Quote, claims_of, kept_of, listed, note_quotes, warn
from implicitreg.sphinxext.words import pretty

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


def quote(what: str, *claims: str, **more: Any) -> Quote:
    """Return a placeholder for something about these claims."""
    return Quote("", what=what, claims=list(claims), **more)


def source_tag(source: str) -> nodes.Node:
    """Return the tag of a source, with its meaning on hover."""
    return nodes.abbreviation(source, source, explanation=SOURCES[source], classes=["source", f"source-{source}"])


def badge(verdict: str, text: str) -> nodes.Node:
    """Return a text in the colour, and with the sign, of a verdict."""
    return nodes.inline("", text, classes=["verdict", f"verdict-{verdict.replace(' ', '-')}"])


def rule_words(rule: Rule) -> str:
    """Return a rule as a phrase, with what it is judged on."""
    if rule.of in ("min", "max"):
        on = "every sample"
    elif rule.of == "value":
        on = "the value"
    else:
        on = f"the whole 95 % interval of the {rule.of}"
    return f"{pretty(rule.words())}, judged on {on}"


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
        kept_of(env, "evidence")[env.docname].append(entry)
        table = nodes.container("", *_math_apart(data.string), classes=["output", "text_html", "claim-record"])
        claim = claims_of(env).get(str(entry.get("id"))) if isinstance(entry, dict) else None
        if claim is None:
            return [table]  # the check before writing complains
        note_quotes(env, [claim])
        line = nodes.paragraph("", "", quote("verdict", claim.id), classes=["claim-verdict"])
        rule = claim.accept.get(entry.get("scale"))
        if rule is not None:
            line += nodes.Text(f" Rule: {rule_words(rule)}. Why: ")
            with renderer.current_node_context(line):
                renderer.nested_render_text(rule.reason.rstrip("."), data.line or 0, inline=True)
            line += [nodes.Text(". "), quote("control-sentence", claim.id)]
        return [table, line]

    @staticmethod
    def _figure(elements: Any, env: BuildEnvironment, data: Any, meta: Mapping[str, Any]) -> list[nodes.Node] | None:
        if not meta.get("alt") or not meta.get("caption") or not meta.get("name"):
            where = f"{env.docname}: cell {data.cell_index}"
            warn(f"{where}: a picture without alternative text, caption and name; use figures.show", env.docname)
            env.note_reread()
            return None
        (image,) = elements.render_image(data)
        image["alt"] = meta["alt"]
        image["classes"].append("dark-light")
        pieces = _columns(env, image, meta)
        shown = [{key: piece.get(key) for key in ("alt", "width")} for piece in pieces]
        for entry, piece in zip(shown, pieces, strict=True):
            entry["uri"], _ = env.relfn2path(piece["uri"], env.docname)
        kept = {"name": meta["name"], "pictures": shown, "data": json.loads(meta.get("data", "[]"))}
        kept_of(env, "figures")[env.docname].append(kept)
        box = nodes.Element()
        renderer, options = elements.renderer, {"caption": meta["caption"], "name": meta["name"]}
        with renderer.current_node_context(box), create_figure_context(renderer, options, data.line or 0):
            renderer.current_node.extend(side_by_side(pieces))
        if kept["data"]:
            for figure in box.findall(nodes.figure):
                figure += nodes.legend("", nodes.paragraph("", "", quote("figure-data", figure=meta["name"])))
        return list(box.children)


def _columns(env: BuildEnvironment, image: nodes.image, meta: Mapping[str, Any]) -> list[nodes.image]:
    """Cut a picture into its columns of panels, which a narrow screen shows below each other."""
    cuts = meta.get("cuts") or []
    if not cuts:
        return [image]
    path = PurePosixPath(image["uri"])
    whole = Path(env.srcdir, env.relfn2path(image["uri"], env.docname)[0])
    pieces = []
    with Image.open(whole) as picture:
        edges = [0, *cuts, picture.width]
        natural = int(str(meta["width"])) / picture.width
        for place, (start, stop) in enumerate(pairwise(edges), start=1):
            name = f"{path.stem}-{place}{path.suffix}"
            picture.crop((start, 0, stop, picture.height)).save(whole.with_name(name))
            piece = image.deepcopy()
            piece["uri"], piece["width"] = str(path.with_name(name)), f"{round((stop - start) * natural)}px"
            piece["classes"] = [*image["classes"], "no-scaled-link"]
            if place > 1:
                piece["alt"] = f"{meta['name']}, column {place} of {len(edges) - 1}: see the first"
            pieces.append(piece)
    return pieces


def side_by_side(columns: Sequence[nodes.Node]) -> list[nodes.Node]:
    """Return the columns of a figure in a box that puts them side by side where there is room."""
    return list(columns) if len(columns) == 1 else [nodes.container("", *columns, classes=["figure-columns"])]


class MeasuredRole(SphinxRole):
    """``{measured}`id`` or ``{measured}`id:format``: a number from the evidence."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Leave a placeholder."""
        claim, _, form = self.text.partition(":")
        node = quote("number", claim.strip(), form=form.strip())
        self.set_source_info(node)
        note_quotes(self.env)
        return [node], []


class VerdictRole(SphinxRole):
    """``{verdict}`id``: a badge."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Leave a placeholder."""
        node = quote("verdict", self.text.strip())
        self.set_source_info(node)
        note_quotes(self.env)
        return [node], []


class SourceRole(SphinxRole):
    """``{source}`recalled```: where a statement comes from."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the tag."""
        if self.text not in SOURCES:
            warn(f"unknown source {self.text!r}; known: {listed(SOURCES)}", self.get_location())
            self.env.note_reread()
            return [nodes.strong(text=self.text)], []
        return [source_tag(self.text)], []


class BadgeRole(SphinxRole):
    """``{verdict-badge}`reproduced```: a badge that belongs to no claim."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the badge."""
        if self.text not in VERDICTS:
            warn(f"unknown verdict {self.text!r}; known: {listed(VERDICTS)}", self.get_location())
            self.env.note_reread()
        return [badge(self.text, self.text)], []


class _OfClaims(SphinxDirective):
    """A directive about the claims of one chapter, or of the whole book."""

    optional_arguments = 1

    def chosen(self) -> list[Claim]:
        """Return the claims that are meant; none, and a warning, when the chapter is unknown."""
        claims = list(claims_of(self.env).values())
        if self.arguments:
            chapters = sorted({c.folder for c in claims})
            if self.arguments[0] not in chapters:
                warn(f"no claims of chapter {self.arguments[0]!r}; known: {listed(chapters)}", self.get_location())
                self.env.note_reread()
            claims = [c for c in claims if c.folder == self.arguments[0]]
        note_quotes(self.env, claims)
        return claims


class VerdictCounts(_OfClaims):
    """``{verdict-counts}``: how many claims got which verdict."""

    def run(self) -> list[nodes.Node]:
        """Leave a placeholder."""
        claims = self.chosen()
        return [nodes.paragraph("", "", quote("counts", *(c.id for c in claims)), classes=["verdict-counts"])]


class VerdictTable(_OfClaims):
    """``{verdicts}``: the claims as a table, disagreement first; of a chapter in short, of the book in full."""

    SHORT = ("Claim", "Statement", "Measured", "Verdict")
    HEADS = ("Claim", "Statement", "Published", "Measured", "Control", "Verdict")

    def run(self) -> list[nodes.Node]:
        """Build the table; what depends on the evidence stays a placeholder, and the rows are sorted when written."""
        claims, short = self.chosen(), bool(self.arguments)
        heads = self.SHORT if short else self.HEADS
        group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in heads), cols=len(heads))
        head = nodes.row("", *(nodes.entry("", nodes.paragraph(text=text)) for text in heads))
        group += [nodes.thead("", head), nodes.tbody("", *(self._row(claim, short) for claim in claims))]
        table = nodes.table("", group, classes=["verdicts", "short" if short else "full"])
        self.set_source_info(table)
        ids = [c.id for c in claims]
        return [quote("surprises", *ids), *([] if short else [quote("filter", *ids)]), table]

    def _row(self, claim: Claim, short: bool) -> nodes.Node:
        statement = nodes.paragraph("", "", *self._inline(claim.statement))
        if claim.locator:
            statement += [nodes.Text(" "), nodes.inline("", claim.locator, classes=["locator"])]
        name = nodes.paragraph("", "", quote("cell", claim.id), nodes.Text(" "), source_tag(claim.source))
        if not short:
            name += quote("origin", claim.id)
        measured = nodes.paragraph("", "", quote("measured", claim.id), nodes.Text(" "), quote("larger", claim.id))
        verdict = nodes.paragraph("", "", quote("verdict", claim.id))
        cells = [name, statement, measured, verdict]
        if not short:
            verdict += quote("rule", claim.id)
            control = nodes.paragraph("", "", quote("control", claim.id), *self._inline(claim.control.what))
            published = nodes.paragraph("", "", quote("published", claim.id))
            cells = [name, statement, published, measured, control, verdict]
        return VerdictRow("", *(nodes.entry("", cell) for cell in cells), claim=claim.id)

    def _inline(self, text: str) -> list[nodes.Node]:
        found, messages = self.parse_inline(text)
        return [*found, *messages]


class VerdictRow(nodes.row):  # type: ignore[misc]
    """A row of a verdict table: knows its claim, and what a reader may filter by."""


class Disagreements(_OfClaims):
    """``{disagreements}``: the claims that were not reproduced as the paper has them."""

    def run(self) -> list[nodes.Node]:
        """Leave a placeholder for each claim; those that agree vanish when the page is written."""
        found: list[nodes.Node] = []
        for claim in self.chosen():
            statement, messages = self.parse_inline(claim.statement)
            item = nodes.paragraph("", "", quote("named", claim.id), nodes.Text(". "), *statement, *messages)
            item += [nodes.Text(" "), source_tag(claim.source), nodes.Text(" "), quote("found", claim.id)]
            found.append(nodes.list_item("", item, claim=claim.id))
        return [nodes.bullet_list("", *found, classes=["disagreements"])]


class AtAGlance(_OfClaims):
    """``{at-a-glance} CHAPTER``: paper, verdicts, time to read and to run, prerequisites."""

    required_arguments = 1
    optional_arguments = 0
    has_content = True

    PREREQUISITES = ("necessary", "helpful")

    def run(self) -> list[nodes.Node]:
        """Build the table; what depends on other pages stays a placeholder."""
        claims = self.chosen()
        if not claims:
            return []
        ids = [c.id for c in claims]
        count = Counter(c.paper for c in claims)
        main = count.most_common(1)[0][0]
        cited = "sphinxcontrib.bibtex" in self.env.app.extensions
        others = f" and {len(count) - 1} more, named in the table of claims" if len(count) > 1 else ""
        paper, messages = self.parse_inline((f"{{cite:t}}`{main}`" if cited else main) + others)
        rows = [
            ("Papers" if others else "Paper", [*paper, *messages]),
            ("Claims", [quote("counts", *ids)]),
            ("Time to read", [quote("reading-time", chapter=self.arguments[0])]),
            ("Time to run", [quote("running-time", chapter=self.arguments[0])]),
        ]
        for line in self.content:
            key, colon, text = line.partition(":")
            if key not in self.PREREQUISITES or not colon:
                allowed = " and ".join(f"'{name}:'" for name in self.PREREQUISITES)
                warn(f"at-a-glance: lines begin with {allowed}, not {line!r}", self.get_location())
                continue
            found, messages = self.parse_inline(text.strip())
            rows.append((f"Prerequisites, {key}", [*found, *messages]))
        group = nodes.tgroup("", nodes.colspec(colwidth=1), nodes.colspec(colwidth=3), cols=2)
        body = nodes.tbody()
        for head, cell in rows:
            stub = nodes.entry("", nodes.paragraph(text=head), classes=["stub"])
            classes = ["verdict-counts"] if head == "Claims" else []
            body += nodes.row("", stub, nodes.entry("", nodes.paragraph("", "", *cell, classes=classes)))
        group += body
        table = nodes.table("", group, classes=["at-a-glance"])
        self.set_source_info(table)
        return [table]


class RecordedFigure(SphinxDirective):
    """``{recorded-figure} name``: a notebook's figure on another page; the content is its caption there."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Leave a placeholder in a figure."""
        picture = quote("picture", figure=self.arguments[0])
        self.set_source_info(picture)
        # The text is a legend, not a caption: the figure has its number where the notebook shows it.
        box = nodes.figure("", picture, classes=["recorded-figure"])
        if self.content:
            box += nodes.legend("", *self.parse_content_to_nodes())
        note_quotes(self.env)
        return [box]


class EnvironmentTable(SphinxDirective):
    """``{environment}``: what the evidence was measured on."""

    def run(self) -> list[nodes.Node]:
        """Leave a placeholder."""
        node = quote("environment")
        self.set_source_info(node)
        note_quotes(self.env)
        return [node]


class LargerRuns(_OfClaims):
    """``{larger-runs}``: what each notebook costs at the papers' own sizes, and whether it was run at them."""

    def run(self) -> list[nodes.Node]:
        """Leave a placeholder."""
        self.chosen()
        return [quote("larger-runs")]


class NameTheorems(SphinxTransform):
    """Has the search, and the index, find definitions and theorems by their names."""

    default_priority = 800  # before the index is collected

    def apply(self, **kwargs: Any) -> None:
        """Put an entry of the index before each named box."""
        for box in list(self.document.findall(lambda node: isinstance(node, nodes.Element) and "realtype" in node)):
            name = box[0].astext().strip().removeprefix("(").removesuffix(")")
            if name and box["ids"]:
                entry = ("single", name, box["ids"][0], "main", None)
                box.parent.insert(box.parent.index(box), addnodes.index(entries=[entry]))
