"""What is known when a page is written: the claims, and what the notebooks of this build recorded."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors import EnvironmentCollector
from sphinx.errors import ExtensionError
from sphinx.util import logging

from implicitreg.claims import SCALES, Claim, ClaimError, ClaimFile, Evidence, Judgement, judge, load_chapters

logger = logging.getLogger(__name__)

# To be raised whenever the structure of what is kept in the (pickled) environment changes.
ENV_VERSION = 2

_complaints: list[str] = []  # of the build that is running; they fail it, with or without -W


def warn(message: str, location: Any) -> None:
    """Warn of something wrong; it fails the build, with or without ``-W``."""
    _complaints.append(message)
    logger.warning(message, location=location, type="implicitreg")


def begin(app: Sphinx) -> None:
    """Forget what an earlier build complained of."""
    _complaints.clear()


def fail(app: Sphinx, error: Exception | None) -> None:
    """Fail the build on any complaint of ours: a page with a wrong quotation is worse than no page."""
    if _complaints:
        app.statuscode = app.statuscode or 1


@lru_cache(maxsize=4)
def _load(book: Path, stamp: tuple[tuple[Path, int], ...]) -> dict[str, ClaimFile]:
    """Read the claim files once for each state (``stamp``) of theirs."""
    return load_chapters(book)


def _files(env: BuildEnvironment) -> dict[str, ClaimFile]:
    """Return the claim files, chapter to file."""
    book = Path(env.srcdir, "book")
    return _load(book, tuple((p, p.stat().st_mtime_ns) for p in sorted(book.glob("*/claims.yml"))))


def claims_of(env: BuildEnvironment) -> dict[str, Claim]:
    """Return the claims of the book, full id to claim."""
    return {claim.id: claim for file in _files(env).values() for claim in file.claims.values()}


def kept_of(env: BuildEnvironment, name: str) -> dict[str, list[Any]]:
    """Return what is kept under ``name`` for each document: evidence, figures or quotes, as plain data."""
    attribute = f"implicitreg_{name}"
    if not hasattr(env, attribute):
        setattr(env, attribute, defaultdict(list))
    kept: dict[str, list[Any]] = getattr(env, attribute)
    return kept


KEPT = ("evidence", "figures", "quotes", "words")


def note_quotes(env: BuildEnvironment, claims: Iterable[Claim] = ()) -> None:
    """Note that the current document quotes, and is to be read again when a file of these claims changes."""
    kept_of(env, "quotes")[env.docname] = [True]
    for folder in {c.folder for c in claims}:
        env.note_dependency(f"book/{folder}/claims.yml")


@dataclass(frozen=True)
class Book:
    """Everything the pages may quote, at the time of writing.

    Attributes
    ----------
    claims
        Full id to claim.
    files
        Chapter to its claim file.
    words
        Document to the number of its words.
    evidence
        Full id to the document that recorded it and the evidence.
    figures
        Name to the document that showed the figure and what is known of it.
    larger
        Full id to what larger runs than the one shown came to, as their kept evidence and today's rules have it.
    kept
        Scale and notebook, such as ``("paper", "rank/flow")``, to the environment of the larger run that is kept of it.
    environment
        What the evidence was measured in, with scale and seed. Empty where no ``claims.json`` tells it.
    complaints
        What is wrong with the evidence: a message and the document it concerns.
    papers
        Key to name of each paper that claims are about.
    """

    claims: Mapping[str, Claim]
    files: Mapping[str, ClaimFile] = field(default_factory=dict)
    words: dict[str, int] = field(default_factory=dict)
    evidence: dict[str, tuple[str, Evidence]] = field(default_factory=dict)
    figures: dict[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    larger: dict[str, list[Judgement]] = field(default_factory=dict)
    kept: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    complaints: list[tuple[str, str]] = field(default_factory=list)
    papers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, env: BuildEnvironment) -> "Book":
        """Gather what the notebooks of this build recorded."""
        book = cls(claims_of(env), _files(env), environment=_environment(Path(env.srcdir)))
        book.words.update({docname: count for docname, (count,) in kept_of(env, "words").items()})
        book.papers.update(paper_names(env, dict.fromkeys(c.paper for c in book.claims.values())))
        for docname, entries in sorted(kept_of(env, "evidence").items()):
            for entry in entries:
                book._admit(docname, entry)
        for docname, entries in sorted(kept_of(env, "figures").items()):
            for entry in entries:
                book.figures.setdefault(entry["name"], (docname, entry))
        for path in sorted(Path(env.srcdir).glob("evidence/*/*/claims.json")):
            book._admit_larger(path, path.relative_to(env.srcdir).as_posix())
        return book

    def _admit_larger(self, path: Path, name: str) -> None:
        try:
            content = json.loads(path.read_text("utf-8"))
            kept = [Evidence.from_json(entry) for entry in content["evidence"]]
            environment = content["environment"]
            for entry in content["claims"]:
                self.kept[environment["scale"], entry["notebook"]] = entry.get("environment", environment)
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
                raise ClaimError(f"evidence for unknown claim {evidence.id!r}; known: {listed(self.claims)}")
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

    def not_run(self, claim: str) -> list[str]:
        """Return the scales above the one shown at which a claim is to be recorded, and of which no run is kept."""
        larger = SCALES[SCALES.index(self.scale) + 1 :] if self.scale in SCALES else ()
        kept = {judgement.scale for judgement in self.larger.get(claim, ())}
        return [scale for scale in larger if scale in self.claims[claim].scales and scale not in kept]

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


class Quote(nodes.General, nodes.Inline, nodes.Element):  # type: ignore[misc]
    """Stands where something will be quoted, until the page is written and all evidence is known.

    ``what`` names one of `writing.WRITERS`; ``claims`` are full ids.
    """


def paper_names(env: BuildEnvironment, papers: Iterable[str]) -> dict[str, str]:
    """Return a name for each paper, such as ``Kubo et al. 2019``, with its first words where two would share one."""
    bibliography = getattr(env.domains.get("cite"), "bibdata", None)
    entries = {} if bibliography is None else bibliography.data.entries
    names = {}
    for paper in papers:
        entry = entries.get(paper)
        if entry is None:
            names[paper] = paper
            continue
        authors = [" ".join(person.last_names) for person in entry.persons.get("author", [])]
        who = f"{authors[0]} et al." if len(authors) > 2 else " & ".join(authors)
        names[paper] = f"{who} {entry.fields.get('year', '')}".strip()
    many = Counter(names.values())
    for paper, name in names.items():
        if many[name] > 1 and paper in entries:
            title = re.sub(r"[{}]", "", entries[paper].fields.get("title", paper)).split()
            names[paper] = f"{name}, {' '.join(title[:3])} …"
    return names


def listed(names: Iterable[str]) -> str:
    """Return names as a list in words."""
    return ", ".join(names) or "none"


def _words(node: nodes.Node) -> int:
    """Return how many words a reader meets: code, pictures and tables of claims are not read word by word."""
    if isinstance(node, nodes.Text):
        return len(node.astext().split())
    if isinstance(node, (nodes.literal_block, nodes.raw, nodes.comment)):
        return 0
    return sum(_words(child) for child in node.children)


class Collector(EnvironmentCollector):
    """Keeps what is known right when documents or claim files change, come, go, or are read in parallel."""

    def clear_doc(self, app: Sphinx, env: BuildEnvironment, docname: str) -> None:
        """Forget what a document gave."""
        for name in KEPT:
            kept_of(env, name).pop(docname, None)

    def merge_other(self, app: Sphinx, env: BuildEnvironment, docnames: set[str], other: BuildEnvironment) -> None:
        """Take over what another process read."""
        for name in KEPT:
            given = kept_of(other, name)
            kept_of(env, name).update({docname: given[docname] for docname in docnames if docname in given})

    def get_outdated_docs(
        self, app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
    ) -> list[str]:
        """Have every quoting document read anew when a claim file has come or gone."""
        folders = sorted({claim.folder for claim in claims_of(env).values()})
        whole_book = kept_of(env, "folders")  # of no document in particular
        known = whole_book.get("", folders)
        whole_book[""] = folders
        return [] if known == folders else sorted(kept_of(env, "quotes"))

    def process_doc(self, app: Sphinx, doctree: nodes.document) -> None:
        """Count the words; refuse quotes in headings, which are copied to the sidebar before anything is quoted."""
        kept_of(app.env, "words")[app.env.docname] = [_words(doctree)]
        for title in doctree.findall(nodes.title):
            for quote in list(title.findall(Quote)):
                warn("a heading cannot quote the evidence; say it in the text below", title)
                app.env.note_reread()
                quote.replace_self(nodes.strong(text="?"))

    def get_updated_docs(self, app: Sphinx, env: BuildEnvironment) -> list[str]:
        """Check the evidence as a whole, and have every quoting page written anew."""
        for message, docname in Book.of(env).complaints:
            warn(message, docname)
        return sorted(kept_of(env, "quotes"))


def check_claims(app: Sphinx) -> None:
    """Stop with one line when a claim file is malformed."""
    try:
        claims_of(app.env)
    except ClaimError as error:
        raise ExtensionError(str(error)) from None
