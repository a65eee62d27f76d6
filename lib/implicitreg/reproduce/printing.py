"""The book as one PDF: the rendered pages, in the order of the contents, as one document that Chromium prints."""

import os
import posixpath
import re
import shutil
from collections.abc import Callable
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, Tag

from implicitreg.reproduce import storage
from implicitreg.reproduce.project import CommandError, Project, UsageError

NAME = "implicit-regularization.pdf"
FIRST = "book/index.html"
_TOGETHER = "_print.html"  # an address only: no such file is written
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
_PATIENCE = 300_000  # milliseconds for the mathematics of the whole book

# What a printed page cannot offer: buttons, downloads, code that the page hides too.
_DROPPED = (
    ".headerlink, .prev-next-footer, .page-facts, .figure-data, .claim-file, .toctree-wrapper, "
    "form, script, noscript, details.above-input, .tag_hide-input > .cell_input, .copybtn, .viewcode-link"
)

_STYLE = """
@page { size: A4; margin: 20mm 18mm 22mm; }
@page { @bottom-center { content: counter(page); font: 9pt sans-serif; color: #444; } }
@page :first { @bottom-center { content: ""; } }
html { font-size: 10pt; }
body { background: #fff; color: #000; margin: 0; }
.bd-content { display: block; }
.bd-article { max-width: none; padding: 0; break-before: page; }
.bd-article h1 { margin-top: 0; }
h1, h2, h3, h4, .admonition-title, table caption { break-after: avoid; }
figure, .admonition-title, .sd-card, tr, .claim-record, div.math { break-inside: avoid; }
pre { white-space: pre-wrap !important; overflow-wrap: anywhere; }
.bd-article :is(.highlight, div[class*="highlight-"]) { display: block !important; break-inside: auto !important; }
.bd-article :is(pre, .highlight, .cell, .cell_input, .cell_output, .admonition, table) {
  break-inside: auto !important;
}
a { color: inherit; }
.bd-article table:not(.verdicts) thead { display: table-row-group; }
.sd-row { display: block; }
.sd-col { width: 100%; max-width: 100%; }
.bd-content table.verdicts.full { font-size: .62rem; }
.bd-content .claim-record, .bd-content div.math, .pst-scrollable-table-container { overflow: visible; }
.book-title { height: 230mm; display: flex; flex-direction: column; justify-content: center; }
.book-title h1 { font-size: 30pt; }
.book-contents { break-before: page; }
.book-contents p { display: flex; gap: .4em; margin: .25em 0; }
.book-contents p::before { content: ""; width: calc(var(--level) * 1.5em); }
.book-contents span { flex: 1; border-bottom: 1px dotted #888; margin-bottom: .3em; }
.book-contents a { text-decoration: none; }
"""


def browser() -> str:
    """Return the path of Chromium, from ``$CHROMIUM`` or the command path.

    Raises
    ------
    UsageError
        There is none.
    """
    given = os.environ.get("CHROMIUM")
    for name in (given,) if given else _BROWSERS:
        found = shutil.which(name)
        if found:
            return found
    missing = f"CHROMIUM={given}: no such program" if given else "no Chromium"
    raise UsageError(f"{missing}; install it (Debian: apt-get install chromium) or set CHROMIUM to its path")


def pages(site: Path) -> list[str]:
    """Return the pages of a site in the order of its contents, as each names the next.

    Parameters
    ----------
    site
        The folder of the site.

    Returns
    -------
    list of str
        Paths relative to ``site``, the landing page first.
    """
    found = [FIRST]
    while True:
        page = _soup(site / found[-1])
        following = page.select_one('link[rel="next"]')
        if following is None:
            return found
        name = posixpath.normpath(posixpath.join(posixpath.dirname(found[-1]), str(following["href"])))
        if name in found:
            return found
        found.append(name)


def _soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


def _slug(page: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", page.removesuffix(".html").lower())


def _article(site: Path, page: str, known: set[str]) -> Tag:
    """Return the text of a page with ids and addresses that hold in the whole document."""
    article = _soup(site / page).select_one("article.bd-article")
    if article is None:
        raise CommandError(f"{page}: no article in it; render the book anew")
    for tag in article.select(_DROPPED):
        tag.decompose()
    slug, folder = _slug(page), posixpath.dirname(page)
    for tag in article.select("[id]"):
        tag["id"] = f"{slug}--{tag['id']}"
    for tag in article.select("img[src]"):
        if re.match(r"[a-z]+:", str(tag["src"])):
            continue
        tag["src"] = posixpath.normpath(posixpath.join(folder, str(tag["src"])))
    for tag in article.select("a[href]"):
        address, _, anchor = str(tag["href"]).partition("#")
        if re.match(r"[a-z]+:", address):
            continue
        target = posixpath.normpath(posixpath.join(folder, address)) if address else page
        if target in known:
            tag["href"] = f"#{_slug(target)}--{anchor}" if anchor else f"#{_slug(target)}"
        else:
            tag.unwrap()
    for tag in article.select("details"):
        tag["open"] = ""
    # Solutions stand at the end of their page, where nobody reads them by accident.
    for solution in article.select("div.solution"):
        article.append(solution.extract())
    article["id"] = slug
    return article


def together(site: Path) -> str:
    """Return the whole book as one page: title, contents, and every page of the site.

    Parameters
    ----------
    site
        The folder of the rendered site.

    Returns
    -------
    str
        HTML whose addresses are relative to ``site``.

    Raises
    ------
    CommandError
        A page is not one of the book, or the first has no mathematics.
    """
    order = pages(site)
    first = _soup(site / FIRST)
    head = first.head
    if head is None:
        raise CommandError(f"{FIRST}: no head in it; render the book anew")
    folder = posixpath.dirname(FIRST)
    styles = []
    for tag in head.select('link[rel="stylesheet"], script[src*="mathjax"]'):
        attribute = "href" if tag.name == "link" else "src"
        tag[attribute] = posixpath.normpath(posixpath.join(folder, str(tag[attribute])))
        styles.append(str(tag))
    settings = [str(tag) for tag in head.select("script:not([src])") if "MathJax" in tag.get_text()]
    if not any("mathjax" in style for style in styles):
        raise CommandError(f"{FIRST}: no mathematics in it to take the typesetter from")
    articles = [_article(site, page, set(order)) for page in order]
    title = _heading(articles[0])
    contents = "".join(_entry(page, article) for page, article in zip(order, articles, strict=True))
    body = "".join(str(article) for article in articles)
    return (
        f'<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"{''.join(styles)}{''.join(settings)}<style>{_STYLE}</style></head><body>"
        f'<div class="book-title"><h1>{escape(title)}</h1></div>'
        f'<main class="bd-content"><nav class="book-contents"><h2>Contents</h2>{contents}</nav>{body}</main>'
        "</body></html>"
    )


def _entry(page: str, article: Tag) -> str:
    """Return a line of the contents; its page number is filled in once the pages are known."""
    parts = page.split("/")
    level = 1 if len(parts) > 2 and parts[-1] != "index.html" else 0
    slug = _slug(page)
    link = f'<a href="#{slug}">{escape(_heading(article))}</a>'
    return f'<p style="--level: {level}">{link}<span></span><b data-page="{slug}">000</b></p>'


def _heading(article: Tag) -> str:
    heading = article.select_one("h1")
    return re.sub(r"\s+", " ", heading.get_text()).strip() if heading else "Untitled"


def _printed(page: Any) -> bytes:
    content: bytes = page.pdf(prefer_css_page_size=True, print_background=True, outline=True, tagged=True)
    return content


def _page_numbers(pdf: bytes, slugs: list[str]) -> dict[str, int]:
    """Return on which page of a PDF each of these anchors lies, counted from 1."""
    from pypdf import PdfReader

    reader = PdfReader(BytesIO(pdf))
    named = {name.lstrip("/"): place for name, place in reader.named_destinations.items()}
    numbers = {}
    for slug in slugs:
        place = named.get(slug)
        number = None if place is None else reader.get_destination_page_number(place)
        if number is not None:
            numbers[slug] = number + 1
    return numbers


def print_book(project: Project, tell: Callable[[str], None] = lambda line: None) -> Path:
    """Print the rendered book as one PDF.

    Parameters
    ----------
    project
        The project; its site must have been rendered.
    tell
        Is told what goes on, a line at a time.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    UsageError
        There is no rendered site, or no Chromium.
    CommandError
        Mathematics or a picture is missing.
    """
    site = project.build / "html"
    if not (site / FIRST).is_file():
        raise UsageError("no rendered book to print: make book, or implicitreg render")

    import pypdf  # noqa: F401  (its absence is told before the mathematics is typeset, not after)
    from playwright.sync_api import Error, sync_playwright

    program, target = browser(), project.build / NAME
    with storage.locked(project.build):
        html = together(site)
        try:
            with sync_playwright() as playwright:
                chromium = playwright.chromium.launch(executable_path=program, args=list(_FLAGS))
                content = _typeset_and_printed(chromium.new_page(), (site / _TOGETHER).as_uri(), html, tell)
                chromium.close()
        except Error as error:
            raise CommandError(f"the book was not printed: {str(error).splitlines()[0]}") from None
        with storage.writing_to(target):
            storage.write(target, content)
    return target


def _typeset_and_printed(page: Any, address: str, html: str, tell: Callable[[str], None]) -> bytes:
    """Print the book twice: its pages must be known before the contents can name them."""
    page.set_default_timeout(_PATIENCE)
    page.emulate_media(media="print", color_scheme="light")
    page.route(address, lambda route: route.fulfill(body=html, content_type="text/html; charset=utf-8"))
    tell("typesetting the mathematics")
    page.goto(address)
    page.wait_for_function("window.MathJax?.startup?.promise !== undefined")
    page.evaluate("MathJax.startup.promise.then(() => true)")
    bad = page.evaluate(
        "[...document.querySelectorAll('[data-mjx-error]')].map(e => e.dataset.mjxError)"
        ".concat([...document.images].filter(i => !i.naturalWidth).map(i => 'picture ' + i.src))"
        ".concat([...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container'))"
        ".map(e => 'not typeset: ' + e.textContent))"
    )
    if bad:
        raise CommandError(f"the book was not printed: {bad[0]} (and {len(bad) - 1} more)")
    tell("printing")
    slugs = page.evaluate("[...document.querySelectorAll('[data-page]')].map(e => e.dataset.page)")
    numbers = _page_numbers(_printed(page), slugs)
    missing = [slug for slug in slugs if slug not in numbers]
    if missing:
        raise CommandError(f"the book was not printed: {missing[0]} has no page in it")
    page.evaluate(
        "n => document.querySelectorAll('[data-page]').forEach(e => e.textContent = n[e.dataset.page])", numbers
    )
    return _printed(page)
