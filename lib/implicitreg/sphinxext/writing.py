"""Every placeholder becomes what the evidence says."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

from implicitreg.claims import SCALES, VERDICTS, Judgement
from implicitreg.claims.ledger import measured_words
from implicitreg.claims.rules import number
from implicitreg.reproduce.progress import duration
from implicitreg.sphinxext.known import Book, Quote, listed, warn
from implicitreg.sphinxext.reading import MEANINGS, SOURCES, VerdictRow, badge, side_by_side
from implicitreg.sphinxext.words import pretty, sensible

WORDS_A_MINUTE = 200

# The order of the verdict tables: what disagrees with the paper comes first.
ORDER = ("differs", "not reproduced", "unguarded", "reproduced in direction", "reproduced", "not run")


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
                warn(f"{claim.id} is quoted, but no notebook of this build records it", node)
            return [nodes.inline("", "not run", classes=["not-run"])]
        try:
            text = format(measured.value, form) if form else sensible(measured)
        except ValueError:
            warn(f"{claim.id}: {form!r} is no format of a number", node)
            text = "?"
        words = pretty(f"{claim.number}: {measured_words(claim, measured, judgement.scale)}")
        return [self.link(claim.id, nodes.inline("", pretty(text), classes=["measured"]), words)]

    def verdict(self, node: Quote) -> list[nodes.Node]:
        """Return a badge, with a mark where the verdict is fragile or not the expected one."""
        judgement = self.judged(node)
        found = [
            self.link(judgement.claim.id, badge(judgement.verdict, judgement.verdict), MEANINGS[judgement.verdict])
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

    def named(self, node: Quote) -> list[nodes.Node]:
        """Return paper and number of a claim, linked to its cell."""
        (claim,) = node["claims"]
        known = self.book.claims[claim]
        text = f"{self.book.papers[known.paper]}, {known.number}"
        return [self.link(claim, nodes.strong("", text, classes=["claim-number"]))]

    def found(self, node: Quote) -> list[nodes.Node]:
        """Return what was measured and the verdict, at the scale shown and at larger ones."""
        judgement = self.judged(node)
        parts: list[nodes.Node] = [*self.verdict(node), nodes.Text(" ")]
        if judgement.measured is not None:
            parts += [nodes.inline("", "", *self.measured(node), classes=["locator"])]
        for larger in self.larger(node):
            if "none" not in larger["classes"]:
                parts += [nodes.Text("; "), larger]
        return parts

    def published(self, node: Quote) -> list[nodes.Node]:
        """Return what the paper gives, and where it gives it."""
        judgement = self.judged(node)
        at = judgement.claim.published
        published = at.get(judgement.scale) or next(iter(at.values()))
        if published.value is None:
            return [nodes.inline("", "—", classes=["none"])]
        value = published.value if isinstance(published.value, str) else number(published.value)
        text = nodes.Text(pretty(value) + (f" {published.unit}" if published.unit else ""))
        if not published.origin:
            return [text]
        return [text, nodes.inline("", f" {published.origin}", classes=["locator"])]

    def measured(self, node: Quote) -> list[nodes.Node]:
        """Return the judged statistic with its interval and n."""
        judgement = self.judged(node)
        if judgement.measured is None:
            return [nodes.inline("", "—", classes=["none"])]
        return [nodes.Text(pretty(measured_words(judgement.claim, judgement.measured, judgement.scale)))]

    def larger(self, node: Quote) -> list[nodes.Node]:
        """Return what larger runs measured, with their verdicts, and at which scales none was made."""
        (claim,) = node["claims"]
        found: list[nodes.Node] = []
        for judgement in self.book.larger.get(claim, ()):
            if judgement.measured is not None:
                words = pretty(measured_words(judgement.claim, judgement.measured, judgement.scale))
                text = nodes.Text(f"at scale {judgement.scale}: {words} ")
                found.append(
                    nodes.inline("", "", text, badge(judgement.verdict, judgement.verdict), classes=["larger"])
                )
        for scale in self.book.not_run(claim):
            found.append(nodes.inline("", f"at scale {scale}: not run", classes=["larger", "none"]))
        return found

    def larger_runs(self, node: Quote) -> list[nodes.Node]:
        """Return a table of the notebooks at the largest scale: their cost, and what is kept of them."""
        heads = ("Notebook", "Time on one core", "Memory", "Run", "As expected")
        scale = SCALES[-1]
        body = nodes.tbody()
        for chapter, file in self.book.files.items():
            for name, cost in file.notebooks.items():
                notebook = f"{chapter}/{name}"
                judged = [
                    each
                    for claim, (docname, _) in self.book.evidence.items()
                    if docname == f"book/{notebook}"
                    for each in self.book.larger.get(claim, ())
                    if each.scale == scale
                ]
                if not file.claims:
                    continue
                environment = self.book.kept.get((scale, notebook))
                agree = sum(each.expected for each in judged)
                cells = (
                    notebook,
                    duration(cost.seconds[scale]) if scale in cost.seconds else "—",
                    f"{cost.memory[scale] / 1000:.1f} GB" if scale in cost.memory else "—",
                    "not run" if environment is None else f"yes, {environment.get('cpu') or 'unknown processor'}",
                    f"{agree} of {len(judged)} claims" if judged else "—",
                )
                body += nodes.row("", *(nodes.entry("", nodes.paragraph(text=cell)) for cell in cells))
        group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in heads), cols=len(heads))
        head = nodes.row("", *(nodes.entry("", nodes.paragraph(text=text)) for text in heads))
        group += [nodes.thead("", head), body]
        return [nodes.table("", group, classes=["larger-runs"])]

    def control(self, node: Quote) -> list[nodes.Node]:
        """Return the control's value, and whether the rule rejects it."""
        judgement = self.judged(node)
        if judgement.control is None:
            return []
        fate = "rejected" if judgement.control_rejected else "accepted too"
        return [nodes.Text(f"{pretty(number(judgement.control))}, {fate}: ")]

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
        return [nodes.inline("", f" {pretty(rule.words())}", classes=["locator"])]

    def counts(self, node: Quote) -> list[nodes.Node]:
        """Return how many claims got which verdict."""
        claims: list[str] = node["claims"]
        count: Counter[str] = Counter(self.book.judgement(claim).verdict for claim in claims)
        found: list[nodes.Node] = [nodes.Text(f"{len(claims)} claim{'' if len(claims) == 1 else 's'}:")]
        for verdict in VERDICTS:
            if count[verdict]:
                found += [nodes.Text(" "), badge(verdict, f"{count[verdict]} {verdict}")]
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
            shown, wanted = (badge(verdict, verdict) for verdict in (j.verdict, j.claim.expected))
            line = nodes.paragraph("", "", name, nodes.Text(": "), shown, nodes.Text(", expected "), wanted)
            items += nodes.list_item("", line)
        title = f"Not as expected: {len(wrong)} of {len(judgements)} verdicts"
        box = nodes.admonition("", nodes.title(title, title), items, classes=["warning", "surprises"])
        return [box]

    def picture(self, node: Quote) -> list[nodes.Node]:
        """Return a notebook's picture."""
        kept = self._figure(node)
        if kept is None:
            return []
        docname, entry = kept
        target = f"{self.relative(self.docname, docname)}#{nodes.make_id(node['figure'])}"
        pictures: list[nodes.Node] = []
        for picture in entry["pictures"]:
            image = nodes.image(candidates={"*": picture["uri"]}, classes=["dark-light"], **picture)
            pictures.append(nodes.reference("", "", image, internal=True, refuri=target))
        return side_by_side(pictures)

    def _figure(self, node: Quote) -> tuple[str, Mapping[str, Any]] | None:
        known = self.book.figures
        if node["figure"] not in known:
            warn(f"no recorded figure {node['figure']!r}; known: {listed(sorted(known))}", node)
        return known.get(node["figure"])

    def figure_data(self, node: Quote) -> list[nodes.Node]:
        """Return the link to the numbers that a figure draws."""
        name = node["figure"]
        return [self._download(f"_downloads/figures/{name}.csv", "Data of this figure (CSV)", "figure-data", name)]

    def _download(self, path: str, text: str, kind: str, about: str = "") -> nodes.Node:
        address = "../" * self.docname.count("/") + path
        more = f' aria-label="{escape(f"{text}: {about}")}"' if about else ""
        return nodes.raw("", f'<a class="{kind}" href="{escape(address)}" download{more}>{text}</a>', format="html")

    def reading_time(self, node: Quote) -> list[nodes.Node]:
        """Return how long a chapter takes to read."""
        pages = [doc for doc in self.book.words if doc.startswith(f"book/{node['chapter']}/")]
        minutes = sum(self._minutes(doc) for doc in pages)
        return [
            nodes.Text(
                f"{minutes} min for {len(pages)} page{'s' if len(pages) > 1 else ''}, "
                f"at {WORDS_A_MINUTE} words a minute, without code"
            )
        ]

    def _minutes(self, docname: str) -> int:
        return max(1, round(self.book.words.get(docname, 0) / WORDS_A_MINUTE))

    def running_time(self, node: Quote) -> list[nodes.Node]:
        """Return how long a chapter takes to run at each scale, as its claim file declares it."""
        declared = [notebook.seconds for notebook in self.book.files[node["chapter"]].notebooks.values()]
        said = [
            f"{duration(sum(seconds[scale] for seconds in declared))} at scale {scale}"
            for scale in SCALES
            if declared and all(scale in seconds for seconds in declared)
        ]
        return [nodes.Text(", ".join(said) + ", on one core" if said else "not measured")]

    def origin(self, node: Quote) -> list[nodes.Node]:
        """Return the paper of a claim, and the link to where its rule is written."""
        (claim,) = node["claims"]
        known = self.book.claims[claim]
        address = "../" * self.docname.count("/") + f"_sources/book/{known.folder}/claims.yml.txt"
        # A text fragment: browsers that know it jump to the claim, others open the file at its top.
        link = f'<a class="claim-file" href="{address}#:~:text={known.key.replace("-", "%2D")}:">rule</a>'
        return [
            nodes.inline("", f" {self.book.papers[known.paper]} ", classes=["locator"]),
            nodes.raw(
                "",
                link.replace("rule</a>", f'rule<span class="visually-hidden"> of {known.number}</span></a>'),
                format="html",
            ),
        ]

    def filter(self, node: Quote) -> list[nodes.Node]:
        """Return the form that filters the verdict table: hidden until its script runs."""
        judged = [self.book.judgement(claim) for claim in node["claims"]]
        choices: dict[str, dict[str, str]] = {
            "paper": {
                paper: name for paper, name in self.book.papers.items() if any(j.claim.paper == paper for j in judged)
            },
            "kind": {kind: kind for kind in sorted({j.claim.kind for j in judged})},
            "verdict": {v: v for v in ORDER if any(j.verdict == v for j in judged)},
            "source": {s: s for s in SOURCES if any(j.claim.source == s for j in judged)},
        }
        fields = "".join(
            f'<label>{name.capitalize()} <select name="{name}"><option value="">all</option>'
            + "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in values.items())
            + "</select></label>"
            for name, values in choices.items()
        )
        script = resources.files("implicitreg.sphinxext").joinpath("verdicts.js").read_text("utf-8")
        form = (
            f'<form class="verdict-filter" hidden>{fields}<button type="reset">Show all</button>'
            f'<output role="status"></output></form>\n<script type="module">\n{script}</script>'
        )
        return [nodes.raw("", form, format="html")]

    def page_facts(self) -> nodes.Node:
        """Return what a reader of a notebook's page wants to know first, with its downloads and its command."""
        notebook = self.docname.removeprefix("book/")
        chapter, _, name = notebook.partition("/")
        file = self.book.files.get(chapter)
        facts = [f"{self._minutes(self.docname)} min to read"]
        if file is not None and name in file.notebooks and "book" in file.notebooks[name].seconds:
            facts.append(f"{duration(file.notebooks[name].seconds['book'])} to run")
        line = nodes.paragraph("", " · ".join(facts) + " · ")
        line += self._download(f"_sources/{self.docname}.ipynb", "notebook with its outputs", "download-notebook")
        line += [nodes.Text(" · run it: "), nodes.literal(text=f"implicitreg reproduce {notebook}")]
        return nodes.container("", line, classes=["page-facts"])

    def environment(self, node: Quote) -> list[nodes.Node]:
        """Return the environment as a table of names and values."""
        if not self.book.environment:
            warn("no environment: there is neither claims.json nor evidence/book/claims.json", node)
            return []
        group = nodes.tgroup("", nodes.colspec(colwidth=1), nodes.colspec(colwidth=3), cols=2)
        body = nodes.tbody()
        for name, value in self.book.environment.items():
            head = nodes.entry("", nodes.paragraph(text=str(name).replace("_", " ")), classes=["stub"])
            body += nodes.row("", head, nodes.entry("", *(nodes.paragraph("", "", *v) for v in shown(value))))
        group += body
        return [nodes.table("", group, classes=["environment"])]


def shown(value: Any) -> Iterator[list[nodes.Node]]:
    """Return a value of the environment as lines: hashes cut to 12 digits, mappings one line an entry."""
    if value is None or value in ({}, []):
        yield [nodes.Text("none")]
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            for line in shown(inner):
                yield [nodes.Text(f"{key}: "), *line]
    elif re.fullmatch(r"(sha256:)?[0-9a-f]{40,}", str(value)):
        yield [nodes.literal(text=str(value).removeprefix("sha256:")[:12])]
    else:
        yield [nodes.Text(str(value))]


WRITERS: dict[str, Callable[[Writer, Quote], list[nodes.Node]]] = {
    "number": Writer.number,
    "verdict": Writer.verdict,
    "cell": Writer.cell,
    "named": Writer.named,
    "found": Writer.found,
    "published": Writer.published,
    "measured": Writer.measured,
    "larger": Writer.larger,
    "control": Writer.control,
    "control-sentence": Writer.control_sentence,
    "rule": Writer.rule,
    "counts": Writer.counts,
    "surprises": Writer.surprises,
    "picture": Writer.picture,
    "figure-data": Writer.figure_data,
    "reading-time": Writer.reading_time,
    "running-time": Writer.running_time,
    "origin": Writer.origin,
    "filter": Writer.filter,
    "environment": Writer.environment,
    "larger-runs": Writer.larger_runs,
}


class Resolve(SphinxPostTransform):
    """Replaces every placeholder of a page. Runs after myst-nb has chosen each output's form (priority 4)."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        """Replace the placeholders, sort the verdict tables, and say on a notebook's page what it takes to run it."""
        notebook = self.env.doc2path(self.env.docname).endswith(".ipynb")
        if not notebook and next(iter(self.document.findall(Quote)), None) is None:
            return
        book = Book.of(self.env)
        writer = Writer(book, self.app.builder.get_relative_uri, self.env.docname)
        for items in list(self.document.findall(nodes.bullet_list)):
            if "disagreements" in items["classes"]:
                items.children = [item for item in items.children if not _agrees(book, item["claim"])]
                items.children.sort(key=lambda item: _rank(book.judgement(item["claim"])))
        for body in self.document.findall(nodes.tbody):
            if body.children and isinstance(body[0], VerdictRow):
                for row in body.children:
                    row["judgement"] = book.judgement(row["claim"])
                body.children.sort(key=lambda row: _rank(row["judgement"]))
        for node in list(self.document.findall(Quote)):
            unknown = [c for c in node["claims"] if c not in book.claims]
            if unknown:
                warn(f"unknown claim {unknown[0]!r}; known: {listed(book.claims)}", node)
                node.replace_self(nodes.strong(text=f"unknown claim {unknown[0]}"))
            else:
                node.replace_self(WRITERS[node["what"]](writer, node))
        if notebook:
            title = next(iter(self.document.findall(nodes.title)), None)
            if title is not None:
                title.parent.insert(title.parent.index(title) + 1, writer.page_facts())


def _agrees(book: Book, claim: str) -> bool:
    """Whether a claim is reproduced, at the scale shown and at every larger one that is kept."""
    verdicts = [book.judgement(claim).verdict, *(j.verdict for j in book.larger.get(claim, ()))]
    return all(verdict == "reproduced" for verdict in verdicts)


def _rank(judgement: Judgement) -> tuple[bool, int, bool]:
    return judgement.expected, ORDER.index(judgement.verdict), not judgement.fragile


def visit_row(translator: Any, node: VerdictRow) -> None:
    """Open a row with what it may be filtered by."""
    translator.visit_row(node)
    judgement: Judgement = node["judgement"]
    claim = judgement.claim
    data = {"paper": claim.paper, "kind": claim.kind, "verdict": judgement.verdict, "source": claim.source}
    attributes = "".join(f' data-{name}="{escape(value)}"' for name, value in data.items())
    translator.body[-1] = translator.body[-1].replace("<tr", f"<tr{attributes}", 1)


def depart_row(translator: Any, node: VerdictRow) -> None:
    """Close a row."""
    translator.depart_row(node)
