"""Each property of the site, broken on purpose: the check that guards it must complain, and of that."""

import csv
import io
import json
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import browsing
import checks
import pytest

NOTEBOOK = "book/data_dependence/two_points.html"  # with formulas, figures, a slider, theorems
VERDICTS = "book/verdicts.html"
PLAIN = "book/how-to-read.html"


def complains(found, *words):
    """Whether one complaint has all these words."""
    assert any(all(word in one for word in words) for one in found), f"{words} not in {found}"


# ---------------------------------------------------------------------------------------------------------------------
# The folder


@pytest.fixture
def broken(site, tmp_path):
    """Return a copy of the site that shares its files, and what replaces one of them in the copy alone."""
    copy = tmp_path / "html"

    def link(source, target):
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    shutil.copytree(site, copy, copy_function=link)

    def replace(name, change):
        path = copy / name
        before = path.read_bytes()
        after = (
            change(before.decode()).encode() if isinstance(change(before.decode()), str) else change(before.decode())
        )
        assert after != before, "nothing is broken"
        path.unlink()
        path.write_bytes(after)

    return copy, replace


def test_a_page_of_the_contents_is_missing(broken):
    site, _ = broken
    (site / NOTEBOOK).unlink()
    complains(checks.pages(site, [PLAIN, NOTEBOOK]), NOTEBOOK, "no such page")


def test_a_page_is_empty(broken):
    site, replace = broken
    replace(NOTEBOOK, lambda text: re.sub(r"<article.*</article>", "<article></article>", text, flags=re.DOTALL))
    complains(checks.pages(site, [NOTEBOOK]), NOTEBOOK, ": 0 words")
    complains(checks.pages(site, [NOTEBOOK]), NOTEBOOK, "no heading")


def test_pages_are_out_of_order(site, wanted):
    complains(checks.pages(site, [*wanted[1:], wanted[0]]), "next is")


@pytest.mark.parametrize(
    "part",
    [
        '<script src="https://cdn.example/a.js"></script>',
        '<link rel="stylesheet" href="//cdn.example/a.css">',
        '<link rel="preconnect" href="https://fonts.example">',
        '<img alt="A" src="https://cdn.example/a.png">',
        '<img alt="A" src="a.png" srcset="https://cdn.example/a.png 2x">',
        '<iframe title="A" src="http://cdn.example/"></iframe>',
    ],
)
def test_a_page_names_another_host(broken, part):
    site, replace = broken
    replace(PLAIN, lambda text: text.replace("</article>", f"{part}</article>"))
    complains(checks.foreign(site), PLAIN, ".example")


def test_a_style_names_another_host(broken):
    site, replace = broken
    replace("_static/implicitreg.css", lambda text: text + '@font-face { src: url("https://fonts.example/a.woff2"); }')
    complains(checks.foreign(site), "implicitreg.css", "fonts.example")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("rank/gone.html", "no such file"),
        ("rank/", "no such file"),
        ("data_dependence/two_points.html#no-such-place", "no such place"),
        ("#no-such-place", "no such place"),
        ("verdicts.html#?verdict=gone", "no row"),
        ("/book/index.html", "outside"),
        ("../../elsewhere.html", "outside"),
        ("file:///home/someone/book.html", "one machine"),
    ],
)
def test_a_link_is_dead(broken, address, why):
    site, replace = broken
    replace(PLAIN, lambda text: text.replace("</article>", f'<a href="{address}">there</a></article>'))
    complains(checks.links(site, [PLAIN]), PLAIN, address, why)


def test_what_a_page_loads_is_missing(broken):
    site, _ = broken
    (site / "_static" / "implicitreg.css").unlink()
    complains(checks.links(site, [PLAIN]), "implicitreg.css", "no such file")


def emptied(text):
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return json.dumps(notebook)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text[: len(text) // 2], "no notebook"),
        (emptied, "not executed"),
        (lambda text: text.replace('"cell_type"', '"kind"'), "no notebook"),
    ],
)
def test_a_notebook_cannot_be_used(broken, change, why):
    site, replace = broken
    replace(NOTEBOOK.replace("book/", "_sources/book/").replace("html", "ipynb"), change)
    complains(checks.downloads(site, NOTEBOOK), "two_points.ipynb", why)


def test_a_download_is_missing(broken):
    site, replace = broken
    table = checks.soup(site / NOTEBOOK).select_one("a.figure-data")["href"]
    (site / NOTEBOOK).parent.joinpath(table).resolve().unlink()
    (site / "_sources" / NOTEBOOK).with_suffix(".ipynb").unlink()
    complains(checks.downloads(site, NOTEBOOK), ".csv", "no such file")
    complains(checks.downloads(site, NOTEBOOK), ".ipynb", "no such file")
    replace(NOTEBOOK, lambda text: re.sub(r"download-notebook|figure-data", "", text) + '<a href="book.pdf">PDF</a>')
    complains(checks.downloads(site, NOTEBOOK), "no link to the executed notebook")
    complains(checks.downloads(site, NOTEBOOK), "without its numbers")
    complains(checks.downloads(site, NOTEBOOK), "book.pdf", "no such file")
    (site / "book/data_dependence/book.pdf").write_text("not one")
    complains(checks.downloads(site, NOTEBOOK), "book.pdf", "no PDF")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text.splitlines()[0] + "\n", "no data"),
        (lambda text: text + text.splitlines()[1] + ",more\n", "as many fields"),
        (lambda text: text + changed(text, "inf") + "\n", "y is inf"),
        (lambda text: text + changed(text, "much") + "\n", "y is much"),
        (lambda text: "\n".join([text.splitlines()[0], changed(text, "")]), "no line with numbers"),
    ],
)
def test_the_numbers_of_a_figure_are_no_numbers(broken, change, why):
    site, replace = broken
    table = checks.soup(site / NOTEBOOK).select_one("a.figure-data")["href"]
    replace((site / NOTEBOOK).parent.joinpath(table).resolve().relative_to(site.resolve()), change)
    complains(checks.downloads(site, NOTEBOOK), ".csv", why)


def changed(text, y):
    """Return the first line of a table with another value of y."""
    head, first = csv.reader(text.splitlines()[:2])
    first[head.index("y")] = y
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(first)
    return line.getvalue()


def test_the_site_or_a_page_is_too_large(broken, wanted):
    site, replace = broken
    (site / "large.bin").write_bytes(bytes(checks.MOST_OF_SITE))
    complains(checks.size(site, wanted), "the site has")
    replace(PLAIN, lambda text: text + "<!--" + "x" * checks.MOST_OF_PAGE + "-->")
    complains(checks.size(site, wanted), PLAIN, "with its pictures")
    picture = next(one for one in checks.addresses(site / NOTEBOOK).loads if "/_images/" in one).rpartition("/")[2]
    (site / "_images" / picture).unlink()
    (site / "_images" / picture).write_bytes(bytes(checks.MOST_OF_PAGE))
    complains(checks.size(site, wanted), NOTEBOOK, "with its pictures")


def test_a_button_names_a_file_that_is_not_there(tmp_path):
    page = tmp_path / "book" / "a.html"
    page.parent.mkdir()
    addresses = [
        "https://github.com/who/what/edit/main/book/a.ipynb",
        "https://mybinder.org/v2/gh/who/what/main?urlpath=lab/tree/book/a.ipynb",
        "https://colab.research.google.com/github/who/what/blob/main/book/a.ipynb",
    ]
    page.write_text("".join(f'<a href="{one}"></a>' for one in addresses))
    there = {"book/a.ipynb", "book/b.ipynb"}
    assert checks.launch(tmp_path, ["book/a.html"], "who/what", there) == []
    found = checks.launch(tmp_path, ["book/a.html"], "who/what", {"book/b.ipynb"})
    for kind in ("edit", "Binder", "Colab"):
        complains(found, kind, "book/a.ipynb is not in the repository")
    page.write_text("")
    complains(checks.launch(tmp_path, ["book/a.html"], "who/what", there), "no button for Binder")


# ---------------------------------------------------------------------------------------------------------------------
# A page in the browser


def altered(*changes, name=NOTEBOOK):
    """Return what makes a page arrive with pieces of its text replaced, each a pattern and what stands for it."""

    def answer(route):
        text = before = route.fetch().text()
        for pattern, new in changes:
            text = re.sub(pattern, new, text, count=1)
        if text == before:
            route.abort()  # nothing is broken: the page does not open
        else:
            route.fulfill(body=text, content_type="text/html")

    return lambda page: page.route(f"**/{name}", answer)


def added(part, name=PLAIN):
    """Return what makes a page arrive with one more piece at the top of its text."""
    return altered((r"(?s)<article.*?</h1>", lambda found: found[0] + part), name=name)


@pytest.mark.parametrize(
    "part",
    [
        '<img alt="A" src="https://cdn.example/a.png">',
        "<script>fetch('https://cdn.example/a.json').catch(() => 0);</script>",
        '<script src="http://cdn.example/a.js"></script>',
        "<script>new WebSocket('ws://cdn.example/');</script>",
    ],
)
@pytest.mark.parametrize("from_disk", [False, True], ids=["server", "disk"])
def test_a_request_leaves_the_site(visit, home, broken, part, from_disk):
    site, replace = broken
    address = f"{site.as_uri()}/" if from_disk else home
    if from_disk:
        replace(PLAIN, lambda text: text.replace("</article>", part + "</article>"))
    page, watch = visit(address + PLAIN, None if from_disk else added(part))
    page.wait_for_timeout(100)
    complains(checks.outside(watch.addresses, address), "cdn.example")


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ("<script>console.error('it broke');</script>", "console: it broke"),
        ("<script>nothing.at.all();</script>", "nothing is not defined"),
        ("<script>Promise.reject(new Error('late'));</script>", "late"),
        ('<script src="gone.js"></script>', "404"),
    ],
)
def test_a_page_has_an_error(visit, part, why):
    _, watch = visit(PLAIN, added(part))
    complains(watch.errors, why)


@pytest.mark.parametrize(
    ("part", "why"),
    [
        (r'<span class="math">\(\nosuchcommand x\)</span>', r"unknown: \nosuchcommand"),
        (r'<span class="math">\(x^2^3\)</span>', "Double exponent"),
        (r'<span class="math">\(\frac{1\)</span>', r"not typeset: \(\frac{1\)"),
        (r"<p>the norm $\|W\|_F$ of it</p>", "raw TeX"),
        (r"<p>the norm \mathrm{tr} W of it</p>", "raw TeX"),
        (r'<p title="where \(x = 1\)">there</p>', "raw TeX in title"),
    ],
)
def test_a_formula_is_not_typeset(visit, part, why):
    page, _ = visit(NOTEBOOK, added(part, NOTEBOOK))
    complains(checks.typeset(page), why)


def test_mathematics_does_not_load(visit):
    page, watch = visit(NOTEBOOK, lambda page: page.route("**/mathjax/**", lambda route: route.abort()))
    complains(checks.typeset(page), "not typeset")
    complains(watch.errors, "mathjax")


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ('<img alt="A" src="gone.png">', "not loaded: gone.png"),
        ('<img src="../_static/favicon.png">', "no alternative text"),
        ('<img alt=" " src="../_static/favicon.png">', "no alternative text"),
        ('<img alt="favicon.png" src="../_static/favicon.png">', "the file's name"),
    ],
)
def test_a_picture_is_missing_or_mute(visit, part, why):
    page, _ = visit(PLAIN, added(part))
    complains(checks.images(page), why)


@pytest.mark.parametrize("width", checks.WIDTHS)
def test_a_page_is_too_wide(visit, width):
    page, _ = visit(PLAIN, added(f'<div class="too-wide" style="width: {width + 40}px">x</div>'))
    complains(checks.scroll(page, [width]), f"window of {width} px", "div.too-wide")


@pytest.mark.parametrize(("theme", "colour"), [("light", "#aaaaaa"), ("dark", "#444444")])
def test_a_text_is_hard_to_read_in_one_theme(visit, theme, colour):
    other = {"light": "dark", "dark": "light"}[theme]
    page, _ = visit(PLAIN, added(f'<p class="faint" style="color: {colour}">hardly there</p>'), theme=other)
    assert not [one for one in checks.colours(page) if "faint" in one]
    browsing.in_theme(page, theme)
    complains(checks.colours(page), "color-contrast (serious", ".faint")


def test_a_word_of_the_code_is_hard_to_read(visit):
    page, _ = visit(
        NOTEBOOK, added("<style>.highlight .k, .highlight .kn { color: #bbbbbb !important; }</style>", NOTEBOOK)
    )
    complains(checks.colours(page), "color-contrast (serious", "#bbbbbb")


def test_what_scrolls_cannot_be_reached(visit):
    style = "width: 200px; overflow: auto; white-space: nowrap"
    box = f'<div id="closed" style="{style}">{"one long line " * 20}</div>'
    page, _ = visit(PLAIN, added(box), width=360)
    complains(checks.axe(page, checks.WIDTH_RULES), "scrollable-region-focusable (serious", "#closed")


def test_a_button_has_no_name(visit):
    page, _ = visit(PLAIN, added("<button id=mute></button>"))
    complains(checks.axe(page), "button-name (critical", "#mute")


def picture(*colour):
    """Return a picture with a line of one colour on a transparent ground, or without a line."""
    rows = [[bytes((*colour, 255)) if colour and 18 <= row < 22 else bytes(4) for _ in range(40)] for row in range(40)]
    content = zlib.compress(b"".join(b"\0" + b"".join(row) for row in rows))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40, 40, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("theme", "colour"), [("light", (235, 200, 90)), ("dark", (20, 40, 90))])
def test_a_figure_is_hard_to_see_in_one_theme(visit, theme, colour):
    other = {"light": "dark", "dark": "light"}[theme]

    def alter(page):
        page.route("**/_images/*.png", lambda route: route.fulfill(body=picture(*colour), content_type="image/png"))

    page, _ = visit(NOTEBOOK, alter, theme=other)
    assert checks.figures(page) == []
    browsing.in_theme(page, theme)
    complains(checks.figures(page), ".png on rgb", "has a contrast of")


@pytest.mark.parametrize(
    ("style", "why"),
    [
        ("article figure img { filter: brightness(.5) !important; }", "has a contrast of"),
        ("article figure img { filter: blur(2px) !important; }", "shown through blur"),
        ("article figure { opacity: .3; }", "shown through an opacity of 0.3"),
    ],
)
def test_a_figure_is_dimmed(visit, style, why):
    page, _ = visit(NOTEBOOK, added(f"<style>{style}</style>", NOTEBOOK), theme="dark")
    complains(checks.figures(page), why)


def test_a_figure_is_empty(visit):
    def alter(page):
        page.route("**/_images/*.png", lambda route: route.fulfill(body=picture(), content_type="image/png"))

    page, _ = visit(NOTEBOOK, alter)
    complains(checks.figures(page), "nothing is drawn")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ((r'addEventListener\("input"', 'addEventListener("mouseup"'), "the read-out does not follow"),
        ((r'addEventListener\("input"', 'addEventListener("mouseup"'), "no marker moves"),
        ((r'<input type="range"', '<input disabled type="range"'), "no slider that keys can reach"),
        ((r'<input type="range"', '<input tabindex="-1" type="range"'), "no slider that keys can reach"),
        ((r'<input type="range"', '<input onkeydown="return false" type="range"'), "the right arrow does nothing"),
        ((r'input\.setAttribute\("aria-valuetext", now\);', ""), "what is spoken is not"),
        ((r"(?s)b\.textContent = (say.*?)b\.textContent = c\.x", r"\1c.x"), "the numbers do not follow"),
    ],
)
def test_a_slider_does_not_follow_the_keys(visit, change, why):
    page, _ = visit(NOTEBOOK, altered(change))
    complains(checks.interactive(page), why)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ((r"form\.hidden = false;", ""), "no filter"),
        ((r'form\.addEventListener\("change", remember\);', ""), "the rows are not those"),
        ((r"row\.hidden = ", "row.title = "), "the rows are not those"),
        ((r'<select name="kind">', '<select name="kind" disabled>'), "kind: keys do not choose"),
        ((r'name="source"', 'name="origin"'), "no filter by source"),
        ((r'<tr data-paper="', '<tr style="display: none" data-paper="'), "hidden at first"),
        ((r"selects\.some\(", "selects.filter((s) => s.value).slice(0, 1).some("), "two filters together"),
        ((r'<button type="reset"', '<button type="button"'), "the button does not bring all rows back"),
        ((r"history\.replaceState\(", "String("), "the address does not keep the choice"),
        ((r"  read\(\);\n  form\.hidden", "  form.hidden"), "an address with a choice shows all rows"),
        ((r"const chosen = ", "const chosen = '' && "), "the address does not keep the choice"),
    ],
)
def test_the_filters_do_not_filter(visit, change, why):
    page, _ = visit(VERDICTS, altered(change, name=VERDICTS))
    complains(checks.filters(page), why)


def test_without_scripts_something_is_lost(visit):
    hidden = (r'<tr data-paper="', '<tr style="display: none" data-paper="')
    useless = (r'<form class="verdict-filter" hidden', '<form class="verdict-filter"')
    page, _ = visit(VERDICTS, altered(hidden, useless, name=VERDICTS), scripts=False)
    complains(checks.plain_verdicts(page), "rows without scripts")
    complains(checks.plain_verdicts(page), "a filter without scripts")
    for link in ("claim-link", "claim-file"):
        page, _ = visit(VERDICTS, altered((rf'class="{link}', 'class="no-link'), name=VERDICTS), scripts=False)
        complains(checks.plain_verdicts(page), f"rows without a.{link}")
    mute = (r'<p class="ir-note"', '<p class="ir-note" hidden')
    bodies = (r'<div class="ir-control" hidden', '<div class="ir-control"')
    page, _ = visit(NOTEBOOK, altered(mute, bodies), scripts=False)
    complains(checks.plain_figures(page), "says nothing without scripts")
    complains(checks.plain_figures(page), "a slider without scripts")
    page, _ = visit(NOTEBOOK, altered((r'<div class="ir-body"', '<div class="ir-body" hidden')), scripts=False)
    complains(checks.plain_figures(page), "no curves without scripts")
    alone = '<div class="ir-explore" id="alone"><p class="ir-note">Here.</p><div hidden><input></div></div>'
    page, _ = visit(PLAIN, added(alone), scripts=False)
    complains(checks.plain_figures(page), "no picture above it")


# ---------------------------------------------------------------------------------------------------------------------
# Search and print


def without(*forgotten):
    """Return what makes the search index arrive without these parts."""

    def answer(route):
        text = route.fetch().text()
        index = checks.index_of(text)
        for part in forgotten:
            assert index[part]
            index[part] = {}
        route.fulfill(body=f"Search.setIndex({json.dumps(index)})", content_type="text/javascript")

    return lambda page: page.route("**/searchindex.js*", answer)


@pytest.mark.parametrize(
    ("forgotten", "why"),
    [
        (("terms", "titleterms", "alltitles", "objects", "indexentries"), "does not find"),
        (("alltitles", "objects", "indexentries"), "does not lead to"),
    ],
)
def test_search_does_not_find_a_theorem(visit, home, site, wanted, forgotten, why):
    name = next(name for name in wanted if checks.boxes(site, name))
    anchor, title = next(iter(checks.boxes(site, name).items()))
    page, _ = visit("search.html")
    assert checks.search(page, home, title, anchor, name) == []
    page, _ = visit("search.html", without(*(key for key in forgotten if checks.index_of(index(site)).get(key))))
    complains(checks.search(page, home, title, anchor, name), title, why)


def index(site):
    return (site / "searchindex.js").read_text("utf-8")


def test_the_print_is_a_fragment(visit, tmp_path):
    page, _ = visit(PLAIN, added('<img alt="A" src="../_static/favicon.png">'))
    path = Path(tmp_path, "book.pdf")
    page.pdf(path=path, outline=True, tagged=True)
    title = page.locator("main h1").last.evaluate("one => one.firstChild.textContent")
    found = checks.pdf(path, [title, "A chapter that was left out"], pictures=1000)
    complains(found, "pages")
    complains(found, "no chapter", "left out")
    complains(found, "no figure 1")
    complains(found, "pictures, of at least 1000")
    assert not [one for one in found if title in one]
    assert checks.pdf(path, [title], pictures=1, least_pages=1) == ["no figure 1"]
