"""The book as one document: order, addresses, contents. That Chromium prints it is tested with the site."""

import re

import pytest

pytest.importorskip("bs4")

from implicitreg.reproduce import printing
from implicitreg.reproduce.project import CommandError, UsageError

PAGE = """<!DOCTYPE html><html><head><link rel="stylesheet" href="{up}_static/style.css">
<script src="{up}_static/mathjax/tex.js"></script><script>window.MathJax = {{}}</script>{following}</head><body>
<nav>not printed</nav><article class="bd-article">{text}</article></body></html>"""


def write(site, name, text, following=None):
    path = site / "book" / f"{name}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    link = f'<link rel="next" href="{following}">' if following else ""
    path.write_text(PAGE.format(up="../" * (name.count("/") + 1), following=link, text=text), "utf-8")


@pytest.fixture
def site(tmp_path):
    write(
        tmp_path,
        "index",
        '<h1>The book</h1><p id="here">See <a href="rank/flow.html#fig">it</a>.</p>',
        "rank/flow.html",
    )
    flow = (
        '<h1>Flow<a class="headerlink" href="#flow">#</a></h1><div class="page-facts">5 min</div>'
        '<figure id="fig"><img src="../../_images/a.png"><a class="figure-data" href="../x.csv">Data</a></figure>'
        '<div class="solution" id="s"><p>Because.</p></div><p>Later: <a href="#fig">above</a>, <a href="../index.html">'
        'home</a>, <a href="../absent.html">gone</a>, <a href="https://doi.org/1">away</a>.</p>'
        '<script>slide()</script><div class="ir-explore">curves</div>'
    )
    write(tmp_path, "rank/flow", flow)
    write(tmp_path, "orphan", "<h1>Nobody leads here</h1>")
    return tmp_path


def test_the_pages_follow_each_other(site):
    assert printing.pages(site) == ["book/index.html", "book/rank/flow.html"]


def test_a_circle_of_pages_ends(site):
    write(site, "rank/flow", "<h1>Flow</h1>", "../index.html")
    assert printing.pages(site) == ["book/index.html", "book/rank/flow.html"]


def test_addresses_hold_in_the_whole_document(site):
    html = printing.together(site)
    assert 'href="#book-rank-flow--fig">it</a>' in html
    assert '<figure id="book-rank-flow--fig"><img src="_images/a.png"/>' in html
    assert 'href="#book-rank-flow--fig">above</a>' in html
    assert 'href="#book-index">home</a>' in html
    assert 'href="https://doi.org/1">away</a>' in html
    assert "gone" in html
    assert "absent.html" not in html
    assert 'href="_static/style.css"' in html
    assert 'src="_static/mathjax/tex.js"' in html
    # Each anchor that is linked to exists, once.
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)


def test_what_paper_cannot_offer_is_left_out(site):
    html = printing.together(site)
    for absent in ("not printed", "5 min", ">Data<", "slide()", "headerlink", "Nobody leads here"):
        assert absent not in html
    assert "curves" in html


def test_solutions_stand_at_the_end_of_their_page(site):
    html = printing.together(site)
    assert html.index("Later:") < html.index("Because.")


def test_the_contents_name_every_page(site):
    contents = re.search(r"<nav.*?</nav>", printing.together(site), re.DOTALL)[0]
    assert re.findall(r'href="#([^"]+)">([^<]+)</a>', contents) == [
        ("book-index", "The book"),
        ("book-rank-flow", "Flow"),
    ]
    assert re.findall(r'data-page="([^"]+)"', contents) == ["book-index", "book-rank-flow"]


def test_a_page_without_text_is_refused(site):
    write(site, "rank/flow", "")
    path = site / "book/rank/flow.html"
    path.write_text(path.read_text("utf-8").replace("bd-article", "other"), "utf-8")
    with pytest.raises(CommandError, match="no article in it; render the book anew"):
        printing.together(site)


def test_a_missing_browser_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(UsageError, match="no Chromium; install it"):
        printing.browser()
    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
    with pytest.raises(UsageError, match="CHROMIUM=/nowhere/chromium: no such program"):
        printing.browser()
