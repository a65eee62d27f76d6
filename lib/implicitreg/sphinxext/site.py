"""What the site carries beside its pages: its mathematics, its downloads, its links to the repository."""

import csv
import io
import os
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.ext.mathjax import MATHJAX_URL

from implicitreg.sphinxext.known import kept_of, warn


def search_of_files(app: Sphinx) -> None:
    """Have the search of a site opened as files show titles alone: browsers do not let it read the pages there."""
    app.add_js_file(None, body="if (location.protocol === 'file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;")


def local_mathjax(app: Sphinx, config: Config) -> None:
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


def repository(app: Sphinx, config: Config) -> None:
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


COLUMNS = ("panel", "series", "kind", "x", "y", "x_to", "y_to", "x_label", "y_label")


def table_of(data: list[dict[str, Any]]) -> str:
    """Return the numbers of a figure as CSV, a line a point; what is not finite is left blank.

    The first line of each series names the axes.

    Examples
    --------
    >>> line = {"panel": "Loss", "series": "depth 2", "kind": "line", "x_label": "time", "y_label": "loss"}
    >>> print(table_of([{**line, "x": [1.0, 2.0], "y": [0.5, None]}]), end="")
    panel,series,kind,x,y,x_to,y_to,x_label,y_label
    Loss,depth 2,line,1.0,0.5,,,time,loss
    Loss,depth 2,line,2.0,,,,,
    """
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for entry in data:
        same = {key: value for key, value in entry.items() if not isinstance(value, list)}
        axes = {key: same.pop(key) for key in ("x_label", "y_label")}
        lists = {key: value for key, value in entry.items() if isinstance(value, list)}
        for values in zip(*lists.values(), strict=True):
            row = {**same, **axes, **dict(zip(lists, values, strict=True))}
            table.writerow({key: " ".join(v.split()) if isinstance(v, str) else v for key, v in row.items()})
            axes = {}
    return text.getvalue()


def write_downloads(app: Sphinx, error: Exception | None) -> None:
    """Write the numbers of each figure as CSV, and the claim files, beside the pages that link to them."""
    if error is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir, "_downloads", "figures")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for docname, figures in sorted(kept_of(app.env, "figures").items()):
        for figure in (one for one in figures if one["data"]):
            target = folder / f"{figure['name']}.csv"
            if target.exists():
                warn(f"two figures are called {figure['name']!r}", docname)
            target.write_text(table_of(figure["data"]), "utf-8")
    source = Path(app.srcdir)
    for path in sorted(source.glob("book/*/claims.yml")):
        # As text, so that browsers show it.
        target = Path(app.outdir, "_sources", path.relative_to(source)).with_suffix(".yml.txt")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def without_ballast(app: Sphinx, error: Exception | None) -> None:
    """Delete 5 MB that no reader's browser loads: source maps, message catalogues, fonts in an older format too."""
    if error is None and app.builder.format == "html":
        static = Path(app.outdir, "_static")
        for path in [*static.rglob("*.map"), *static.rglob("*.ttf")]:
            path.unlink()
        shutil.rmtree(static / "locales", ignore_errors=True)


def without_live_code(app: Sphinx, config: Config) -> None:
    """Take out the theme's live code: it loads a script from another host, and logs an error where it is not set up."""
    for listeners in app.events.listeners.values():
        listeners[:] = [one for one in listeners if getattr(one.handler, "__module__", "") != "sphinx_thebe"]
    app.registry.css_files[:] = [file for file in app.registry.css_files if "thebe" not in str(file[0])]


def unique_ids(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Take away the ids that all boxes of theorems, proofs and exercises on a page have in common."""
    contents = {"proof-content", "exercise-content", "solution-content"}
    for node in doctree.findall(nodes.Element):
        proof = isinstance(node, nodes.admonition) and "proof" in node["classes"]
        shared = contents | {"proof"} if proof else contents
        if shared & set(node.get("ids", ())):
            node["ids"] = [one for one in node["ids"] if one not in shared]


def name_parts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Name what the theme leaves nameless, for readers who do not see the page."""
    # A bibliography has the role of a list, and its entries have not that of a list's items.
    if "body" in context:
        context["body"] = context["body"].replace(
            '<div role="list" class="citation-list">', '<div class="citation-list">'
        )
    contents = context.get("generate_toctree_html")
    if contents is None:
        return

    def named(*args: Any, **kwargs: Any) -> Any:
        tree = contents(*args, **kwargs)
        for summary in getattr(tree, "select", lambda selector: [])("details > summary"):
            chapter = summary.find_previous("a")
            if chapter is not None:
                summary["aria-label"] = f"Pages of {chapter.get_text(strip=True)}"
        return tree

    context["generate_toctree_html"] = named
