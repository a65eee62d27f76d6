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
        The verdict table of a chapter in short, or of the whole book in full and with a filter; disagreement first.
    ``{verdict-counts} [CHAPTER]``
        How many claims got which verdict, in one line.
    ``{disagreements} [CHAPTER]``
        The claims that were not reproduced, at the scale shown or at a larger one.
    ``{at-a-glance} CHAPTER``
        Paper, verdicts, time to read and to run; its lines ``necessary: ...``, ``helpful: ...`` are prerequisites.
    ``{recorded-figure} NAME``
        A figure that a notebook showed under this name; the content is the caption here.
    ``{environment}``
        The environment that the evidence was measured in.
    ``{larger-runs}``
        What each notebook costs at the papers' own sizes, and whether it was run at them.

Each notebook's page gets a line with the time that it takes, its download and its command; each figure, a link to the
numbers that it draws.

Every unknown name is a warning that lists the known ones, and fails the build, with ``-W`` or without.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

from implicitreg import __version__
from implicitreg.sphinxext import known, reading, site, writing
from implicitreg.sphinxext.reading import Mime

__all__ = ["Mime", "setup"]


def _skip(translator: Any, node: nodes.Node) -> None:
    raise nodes.SkipNode


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register everything with Sphinx."""
    skip = (_skip, None)
    app.add_node(known.Quote, html=skip, latex=skip, text=skip, man=skip, texinfo=skip)
    app.add_node(reading.VerdictRow, html=(writing.visit_row, writing.depart_row))
    app.add_role("measured", reading.MeasuredRole())
    app.add_role("verdict", reading.VerdictRole())
    app.add_role("source", reading.SourceRole())
    app.add_role("verdict-badge", reading.BadgeRole())
    app.add_directive("verdicts", reading.VerdictTable)
    app.add_directive("verdict-counts", reading.VerdictCounts)
    app.add_directive("disagreements", reading.Disagreements)
    app.add_directive("at-a-glance", reading.AtAGlance)
    app.add_directive("recorded-figure", reading.RecordedFigure)
    app.add_directive("environment", reading.EnvironmentTable)
    app.add_directive("larger-runs", reading.LargerRuns)
    app.add_transform(reading.NameTheorems)
    app.add_post_transform(writing.Resolve)
    app.add_env_collector(known.Collector)
    app.connect("builder-inited", known.begin, priority=1)
    app.connect("builder-inited", known.check_claims)
    app.connect("config-inited", site.local_mathjax)
    app.connect("config-inited", site.repository)
    app.connect("config-inited", site.without_live_code)
    app.connect("doctree-resolved", site.unique_ids)
    app.connect("builder-inited", site.search_of_files)
    app.connect("html-page-context", site.name_parts, priority=900)
    app.connect("build-finished", site.write_downloads, priority=400)
    app.connect("build-finished", site.without_ballast, priority=900)
    app.connect("build-finished", known.fail)
    return {
        "version": __version__,
        "env_version": known.ENV_VERSION,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
