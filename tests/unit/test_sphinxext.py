"""What the book's pages quote, tried on small books that Sphinx builds here."""

import base64
import copy
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

pytest.importorskip("myst_nb")

import nbformat.v4 as v4

from implicitreg.claims import MIME, Claim, Evidence, Ledger, load
from implicitreg.claims.statistics import Statistic, summarise
from implicitreg.sphinxext import Mime
from implicitreg.sphinxext.reading import rule_words
from implicitreg.sphinxext.site import repository, without_ballast
from implicitreg.sphinxext.words import pretty, sensible
from implicitreg.sphinxext.writing import shown

CLAIMS = """
paper: someone2020
notebooks:
  flow: {seconds: {smoke: 3, book: 200}}
claims:
  grows:
    number: C01
    statement: "The entry grows like $1/\\\\sqrt{2\\\\ell}$."
    locator: "slide 7"
    source: author
    kind: bound
    published: {value: 70.7, unit: null, from: "plot"}
    measure: "least slack"
    scales: [smoke, book]
    seeds: 3
    accept: {rule: at_least, value: 0.0, of: min, reason: "a bound leaves $0$ slack"}
    control: {what: "wrong sign of $w$"}
    expected: reproduced
  half:
    number: C02
    statement: "One half."
    locator: null
    source: recalled
    kind: value
    published: {value: null}
    measure: "share"
    scales: [book]
    seeds: 8
    accept: {rule: within, value: 0.5, absolute: 0.01, of: mean, reason: "four standard errors"}
    control: {what: "a shifted start"}
    expected: reproduced
  later:
    number: C03
    statement: "Only at the paper's size."
    locator: null
    source: derived
    kind: value
    published: {value: null}
    measure: "time"
    scales: [paper]
    seeds: 3
    accept: {rule: at_most, value: 1.0, of: mean, reason: "none"}
    control: {what: "nothing"}
    expected: reproduced
"""

CONF = """
extensions = ["myst_nb", "implicitreg.sphinxext"]
root_doc = "index"
html_theme = "basic"
nb_execution_mode = "off"
html_sourcelink_suffix = ""
numfig = True
myst_enable_extensions = ["dollarmath"]
exclude_patterns = ["_build"]
"""

INDEX = """
# Book

The slack is {measured}`rank.grows`, to two digits {measured}`rank.grows:.1f`; see {numref}`fig-growth`.
The verdict: {verdict}`rank.grows`. A {source}`recalled` tag, and a {verdict-badge}`unguarded` badge.

```{verdict-counts}
```

```{disagreements}
```

```{at-a-glance} rank
necessary: sums of $x$.
helpful: [](table.md).
```

```{verdicts} rank
```

```{recorded-figure} fig-growth
Grows by {measured}`rank.grows`.
```

```{toctree}
table
book/rank/flow
```
"""

TABLE = """
# Table

```{verdicts}
```

```{environment}
```
"""

HALF = [0.5003, 0.4991, 0.501, 0.4995, 0.5002, 0.4999, 0.5005, 0.4996]


def png() -> str:
    """Return a picture of one transparent pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 6, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(5))) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + content).decode()


def code(source, *outputs):
    return v4.new_code_cell(source, outputs=list(outputs), execution_count=1)


def recorded(claims, key, samples, control):
    data, meta = Ledger(claims).record(key, samples=samples, control=control)._repr_mimebundle_()
    return code(f"ledger.record({key!r})", v4.new_output("display_data", data=data, metadata=meta))


def figure(**meta):
    data = {"image/png": png(), "text/plain": meta.get("alt", "")}
    shown = v4.new_output("display_data", data=data, metadata={"image/png": {"width": 300, **meta}})
    caption = {"text/markdown": {"caption_of": meta.get("name")}}
    below = v4.new_output("display_data", data={"text/markdown": meta.get("caption", "")}, metadata=caption)
    return code("figures.show(fig)", shown, below)


DRAWN = [{"panel": "Growth", "series": "entry", "kind": "line", "x_label": "time", "y_label": "entry"}]
DRAWN[0] |= {"x": [1.0, 2.0], "y": [2.5, None]}
GROWTH = {
    "data": json.dumps(DRAWN),
    "alt": "The entry rises to 70.7.",
    "caption": "The entry rises to $70.7$.",
    "name": "fig-growth",
}


def notebook(path: Path, *cells) -> None:
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    content = [v4.new_markdown_cell("# Flow"), *copy.deepcopy(cells)]
    for number, cell in enumerate(content):
        cell.id = f"cell-{number}"
    nb = v4.new_notebook(cells=content, metadata=kernel)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(v4.writes(nb), "utf-8")


def write(folder: Path, **pages: str) -> Path:
    """Write a small book that has nothing wrong with it."""
    texts = {"conf.py": CONF, "index.md": INDEX, "table.md": TABLE, "book/rank/claims.yml": CLAIMS, **pages}
    environment = {"torch": "2.13.0", "lock": "ab" * 32, "data": {"digits": "cd" * 32}, "scale": "book"}
    texts["evidence/book/claims.json"] = json.dumps({"environment": environment, "claims": []})
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    write_flow(folder, 1.0123456, 1.2, 1.5)
    return folder


def write_flow(folder: Path, *samples: float) -> None:
    claims = load(folder / "book/rank/claims.yml")
    cells = [recorded(claims, "grows", list(samples), [-68.25] * 3), recorded(claims, "half", HALF, [0.9] * 8)]
    notebook(folder / "book/rank/flow.ipynb", figure(**GROWTH), *cells)


def build(folder: Path, *options: str, strict: bool = True) -> SimpleNamespace:
    command = [sys.executable, "-P", "-m", "sphinx", "-b", "html", "-n", "-q", *options]
    command += ["-W", "--keep-going"] if strict else []
    done = subprocess.run(
        [*command, str(folder), str(folder / "_build/html")], capture_output=True, text=True, timeout=120, check=False
    )
    return SimpleNamespace(code=done.returncode, log=re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr))


def page(folder: Path, name: str) -> str:
    return (folder / "_build/html" / f"{name}.html").read_text("utf-8")


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html))


def row(html: str, number: str) -> str:
    """Return the table row of a claim, as text."""
    (found,) = [r for r in re.findall(r"<tr.*?</tr>", html, re.DOTALL) if f">{number}<" in r and "<th" not in r]
    return text_of(found)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("book"))
    done = build(folder)
    assert (done.code, done.log) == (0, "")
    return folder


@pytest.fixture
def edited(book, tmp_path):
    folder = tmp_path / "book"
    shutil.copytree(book, folder)
    # Another folder is another source to Sphinx: let it settle, so that what follows is an incremental build.
    assert build(folder).code == 0
    return folder


def test_a_number_in_the_text_is_that_of_the_evidence(book):
    html = page(book, "index")
    assert "The slack is 1.012, to two digits 1.0;" in text_of(html)
    assert 'href="book/rank/flow.html#claim-rank-grows"' in html
    assert 'title="C01: min 1.012, range 1.012 to 1.5, n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}3"' in html


def test_a_verdict_is_a_badge_with_a_word(book):
    html = page(book, "index")
    assert re.search(r'The verdict: <a [^>]*><span class="verdict verdict-reproduced">reproduced</span></a>', html)
    assert "3 claims: 2 reproduced 1 not run" in text_of(html)


def test_a_source_tag_says_what_it_means(book):
    assert re.search(
        r'<abbr class="source source-recalled" title="[^"]*not verified[^"]*">recalled</abbr>', page(book, "index")
    )


def test_a_figure_has_number_caption_alternative_text_and_label(book):
    html = page(book, "book/rank/flow")
    assert re.search(r'<figure [^>]*id="fig-growth"', html)
    assert re.search(r'<img alt="The entry rises to 70\.7\."[^>]*class="dark-light"', html)
    caption = re.search(r"<figcaption>.*?</figcaption>", html, re.DOTALL)[0]
    assert text_of(caption).strip().startswith("Fig. 1 The entry rises to")
    assert 'class="math' in caption
    assert html.count("The entry rises to") == 2  # the caption below the picture is for Jupyter alone
    assert ">Fig. 1</" in page(book, "index")  # numref finds it from another page


def test_a_recorded_figure_is_shown_on_another_page(book):
    html = page(book, "index")
    source = re.search(r'<a [^>]*href="book/rank/flow\.html#fig-growth"[^>]*><img [^>]*src="([^"]+)"', html)[1]
    assert (book / "_build/html" / source).is_file()
    assert text_of(re.search(r"<figcaption>.*?</figcaption>", html, re.DOTALL)[0]).strip() == "Grows by 1.012."


def test_a_record_keeps_its_table_and_gets_its_verdict(book):
    html = page(book, "book/rank/flow")
    assert html.count('id="claim-rank-grows"') == 1
    line = text_of(re.search(r'<p class="claim-verdict">.*?</p>', html, re.DOTALL)[0])
    assert line == (
        "reproduced Rule: at least 0, judged on every sample. Why: a bound leaves \\(0\\) slack. "
        "The same rule rejects the control."
    )
    # Mathematics in the table that the ledger printed is typeset too.
    assert r'<span class="math notranslate nohighlight">\(1/\sqrt{2\ell}\)</span>' in html


def test_the_verdict_table_tells_everything(book):
    html = page(book, "table")
    grows = row(html, "C01")
    for part in ("author", "slide 7", "70.7 plot", "min 1.012, range 1.012 to 1.5", "−68.25, rejected: wrong sign"):
        assert part in grows
    assert r'<span class="math notranslate nohighlight">\(1/\sqrt{2\ell}\)</span>' in html
    assert 'href="book/rank/flow.html#claim-rank-grows"' in html
    assert "reproduced" in grows
    assert "0.5 ± 0.01" in row(html, "C02")
    assert row(html, "C03").rstrip().endswith("not run at most 1")
    assert "Not as expected" not in html


def test_the_whole_table_is_sorted_by_disagreement_and_can_be_filtered(edited):
    path = edited / "book/rank/claims.yml"
    text = path.read_text("utf-8").replace("value: 0.5, absolute", "value: 0.7, absolute")
    path.write_text(text.replace("expected: reproduced\n  later", "expected: differs\n  later"), "utf-8")
    assert build(edited).code == 0
    html = page(edited, "table")
    body = re.search(r'<table class="[^"]*verdicts[^"]*full.*?</table>', html, re.DOTALL)[0]
    numbers = re.findall(r'claim-number">(C\d\d)<', body)
    assert numbers == ["C02", "C01", "C03"]
    rows = [dict(re.findall(r'data-(\w+)="([^"]*)"', tag)) for tag in re.findall(r"<tr[^>]*data-[^>]*>", body)]
    assert rows[0] == {"paper": "someone2020", "kind": "value", "verdict": "differs", "source": "recalled"}
    form = re.search(r'<form class="verdict-filter" hidden>.*?</form>', html, re.DOTALL)[0]
    options = {
        name: re.findall(r'<option value="([^"]*)"', choices)
        for name, choices in re.findall(r'<select name="(\w+)">(.*?)</select>', form, re.DOTALL)
    }
    assert options == {
        "paper": ["", "someone2020"],
        "kind": ["", "bound", "value"],
        "verdict": ["", "differs", "reproduced", "not run"],
        "source": ["", "author", "recalled", "derived"],
    }
    # Each row leads to the file that holds its rule.
    assert 'href="_sources/book/rank/claims.yml.txt#:~:text=half:"' in body
    assert (edited / "_build/html/_sources/book/rank/claims.yml.txt").read_text("utf-8") == path.read_text("utf-8")
    # The page of the chapter has the same order, in short.
    short = re.search(r'<table class="[^"]*verdicts[^"]*short.*?</table>', page(edited, "index"), re.DOTALL)[0]
    assert re.findall(r'claim-number">(C\d\d)<', short) == numbers
    assert "wrong sign" not in short


def test_what_disagrees_is_listed_and_nothing_else(edited):
    def listed():
        return text_of(re.search(r'<ul class="disagreements.*?</ul>', page(edited, "index"), re.DOTALL)[0])

    assert "C03. Only at the paper" in listed()
    assert "C01" not in listed()
    path = edited / "book/rank/claims.yml"
    path.write_text(path.read_text("utf-8").replace("value: 0.5, absolute", "value: 0.7, absolute"), "utf-8")
    assert build(edited).code == 0
    assert re.search(r"someone2020, C02\. One half\. recalled differs", listed())
    assert listed().index("C02") < listed().index("C03")


def test_a_chapter_at_a_glance(book):
    table = re.search(r'<table class="[^"]*at-a-glance.*?</table>', page(book, "index"), re.DOTALL)[0]
    text = text_of(table)
    assert "Paper someone2020" in text
    assert "Claims 3 claims: 2 reproduced 1 not run" in text
    assert re.search(r"Time to read \d+ min for 1 page, at 200 words", text)
    assert "Time to run 3 s at scale smoke, 3 min at scale book" in text
    assert "Prerequisites, necessary sums of" in text
    assert 'href="table.html"' in table


def test_a_notebooks_page_says_what_it_takes(book):
    html = page(book, "book/rank/flow")
    facts = re.search(r'<div class="page-facts.*?</div>', html, re.DOTALL)[0]
    assert "1 min to read · 3 min to run" in text_of(facts)
    assert "implicitreg reproduce rank/flow" in text_of(facts)
    address = re.search(r'<a class="download-notebook" href="([^"]+)" download', facts)[1]
    copied = (book / "_build/html/book/rank" / address).resolve()
    assert copied.read_text("utf-8") == (book / "book/rank/flow.ipynb").read_text("utf-8")
    assert "page-facts" not in page(book, "index")


def test_a_figure_links_to_its_numbers(book):
    html = page(book, "book/rank/flow")
    address = re.search(r'<a class="figure-data" href="([^"]+)" download', html)[1]
    table = (book / "_build/html/book/rank" / address).resolve().read_text("utf-8")
    assert table.splitlines()[1] == "Growth,entry,line,1.0,2.5,,,time,entry"


def test_a_wide_figure_is_shown_in_its_columns(tmp_path):
    folder = write(tmp_path / "book")
    meta = {**GROWTH, "width": 600, "cuts": [250]}
    picture = io.BytesIO()
    Image.new("RGBA", (900, 300), (255, 0, 0, 255)).save(picture, "png")
    cell = figure(**meta)
    cell.outputs[0].data["image/png"] = base64.b64encode(picture.getvalue()).decode()
    claims = load(folder / "book/rank/claims.yml")
    cells = [recorded(claims, "grows", [1.0, 2.0, 3.0], [-1.0] * 3), recorded(claims, "half", HALF, [0.9] * 8)]
    notebook(folder / "book/rank/flow.ipynb", cell, *cells)
    assert (build(folder).code, build(folder).log) == (0, "")
    for name, place in (("book/rank/flow", "book/rank"), ("index", "")):
        box = re.search(r'<div class="figure-columns.*?</div>', page(folder, name), re.DOTALL)[0]
        images = re.findall(r'<img alt="([^"]+)"[^>]*src="([^"]+)"[^>]*width: (\d+)px', box)
        assert [alt for alt, _, _ in images] == [GROWTH["alt"], "fig-growth, column 2 of 2: see the first"]
        assert [int(width) for _, _, width in images] == [167, 433]
        sizes = []
        for _, source, _ in images:
            with Image.open(folder / "_build/html" / place / source) as piece:
                sizes.append(piece.size)
        assert sizes == [(250, 300), (650, 300)]


def test_the_search_finds_a_theorem_by_its_name(tmp_path):
    folder = write(tmp_path / "book")
    conf = folder / "conf.py"
    conf.write_text(conf.read_text("utf-8").replace('"myst_nb"', '"sphinx_proof", "myst_nb"'), "utf-8")
    index = folder / "index.md"
    box = "```{prf:theorem} Norms up, rank down\n:label: up-down\n\nIt grows.\n```\n"
    proof = "```{prf:proof}\nBy growth.\n```\n"
    index.write_text(index.read_text("utf-8") + box + proof + box.replace("up-down", "again") + proof, "utf-8")
    assert (build(folder).code, build(folder).log) == (0, "")
    found = json.loads(re.search(r"Search.setIndex\((.*)\)", page_of_index(folder), re.DOTALL)[1])
    places = found["indexentries"]["norms up, rank down"]
    # The box itself, and before pages that merely hold the words.
    assert sorted(where[1:] for where in places) == [["again", True], ["up-down", True]]
    ids = re.findall(r' id="([^"]+)"', page(folder, "index"))
    assert len(ids) == len(set(ids))


def test_ballast_is_deleted_after_a_build_that_went_well(tmp_path):
    names = ("styles/theme.css", "styles/theme.css.map", "fonts/a.woff2", "fonts/a.ttf", "locales/de/x.mo")
    for name in names:
        path = tmp_path / "_static" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", "utf-8")
    app = SimpleNamespace(outdir=tmp_path, builder=SimpleNamespace(format="html"))

    def left():
        return {p.relative_to(tmp_path / "_static").as_posix() for p in tmp_path.rglob("*") if p.is_file()}

    without_ballast(app, RuntimeError("the build failed"))
    assert left() == set(names)
    without_ballast(app, None)
    assert left() == {"styles/theme.css", "fonts/a.woff2"}


def page_of_index(folder):
    return (folder / "_build/html/searchindex.js").read_text("utf-8")


def test_the_environment_is_told(book):
    text = text_of(page(book, "table"))
    assert "torch 2.13.0" in text
    assert "lock abababababab " in text
    assert "digits: cdcdcdcdcdcd " in text


def test_pages_need_no_network(book):
    addresses = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag in ("script", "link", "img", "iframe"):
                addresses.extend(value for name, value in attrs if name in ("src", "href"))

    for path in (book / "_build/html").rglob("*.html"):
        Reader().feed(path.read_text("utf-8"))
    assert any("mathjax/tex-svg-full.js" in a for a in addresses)
    assert not [a for a in addresses if re.match(r"(https?:)?//", a)]
    assert (book / "_build/html/_static/mathjax/tex-svg-full.js").stat().st_size > 1e6


def test_a_changed_number_reaches_pages_that_did_not_change(edited):
    write_flow(edited, 1.25, 1.5, 1.75)
    assert build(edited).code == 0
    assert "The slack is 1.25," in text_of(page(edited, "index"))
    assert "min 1.25" in row(page(edited, "table"), "C01")


def test_a_reversed_rule_changes_every_place_that_shows_the_verdict(edited):
    path = edited / "book/rank/claims.yml"
    path.write_text(path.read_text("utf-8").replace("rule: at_least", "rule: at_most"), "utf-8")
    assert build(edited).code == 0
    # The control, -68, meets the reversed rule.
    assert '<span class="verdict verdict-unguarded">unguarded</span>' in page(edited, "index")
    assert "unguarded expected: reproduced" in row(page(edited, "table"), "C01")
    assert "−68.25, accepted too: wrong sign" in row(page(edited, "table"), "C01")
    assert "Not as expected: 1 of 3 verdicts" in page(edited, "table")
    line = text_of(re.search(r'<p class="claim-verdict">.*?</p>', page(edited, "book/rank/flow"), re.DOTALL)[0])
    assert line.startswith("unguarded expected: reproduced Rule: at most 0")
    assert line.endswith("accepts the control too, so it decides nothing.")


def test_a_new_chapter_reaches_the_pages_about_the_whole_book(edited):
    (edited / "book/more").mkdir()
    (edited / "book/more/claims.yml").write_text(CLAIMS.replace("someone2020", "other2021"), "utf-8")
    assert build(edited).code == 0
    assert "6 claims: 2 reproduced 4 not run" in text_of(page(edited, "index"))


def test_a_folder_that_claims_nothing_has_its_facts_and_no_verdicts(edited):
    (edited / "index.md").write_text(INDEX.replace("rank/flow\n```", "rank/flow\nbook/how/step\n```"), "utf-8")
    notebook(edited / "book/how/step.ipynb", v4.new_code_cell("1 + 1"))
    (edited / "book/how/claims.yml").write_text("notebooks:\n  step: {seconds: {book: 7}}\n", "utf-8")
    assert build(edited).code == 0
    assert "3 claims: 2 reproduced 1 not run" in text_of(page(edited, "index"))
    facts = text_of(re.search(r'<div class="page-facts.*?</div>', page(edited, "book/how/step"), re.DOTALL)[0])
    assert "7 s to run" in facts
    assert "run it: implicitreg reproduce how/step" in facts


def test_reading_in_parallel_changes_nothing(book, tmp_path):
    # Sphinx reads in parallel from six documents on.
    more = {f"p{i}.md": f"---\norphan: true\n---\n# P{i}\n\n{{measured}}`rank.half`\n" for i in range(6)}
    folder = write(tmp_path / "book", **more)
    assert (build(folder, "-j", "2").code, page(folder, "table")) == (0, page(book, "table"))
    assert re.search(r"<p><a [^>]*rank-half[^>]*>.*?0\.5.*?</a></p>", page(folder, "p5"))


def test_every_mistake_fails_the_build_and_names_what_is_known(tmp_path):
    wrong = """
# Wrong {measured}`rank.grows`

{measured}`rank.nosuch` {verdict}`rank.nosuch` {measured}`rank.grows:.q` {measured}`rank.half`
{source}`hearsay` {verdict-badge}`perhaps`

```{verdicts} nosuch
```

```{recorded-figure} fig-nosuch
```

```{environment}
```
"""
    folder = write(
        tmp_path / "book", **{"index.md": wrong + "\n```{toctree}\ntable\nbook/rank/flow\nbook/rank/two\n```\n"}
    )
    (folder / "evidence/book/claims.json").unlink()
    claims = load(folder / "book/rank/claims.yml")
    grows = recorded(claims, "grows", [1.0, 2.0, 3.0], [-1.0] * 3)
    stranger, short = copy.deepcopy(grows), copy.deepcopy(grows)
    stranger.outputs[0].metadata[MIME]["id"] = "rank.stranger"
    short.outputs[0].metadata[MIME].update(id="rank.half", samples=[0.5])
    notebook(folder / "book/rank/flow.ipynb", grows, stranger, short)
    notebook(folder / "book/rank/two.ipynb", grows, figure(alt="", caption="", name=""))
    for attempt in ("first", "again, with nothing changed"):
        done = build(folder)
        assert done.code == 1, attempt
        for message in (
            "a heading cannot quote the evidence",
            "unknown claim 'rank.nosuch'; known: rank.grows, rank.half, rank.later",
            "rank.grows: '.q' is no format of a number",
            "rank.half is quoted, but no notebook of this build records it",
            "unknown source 'hearsay'; known: paper, author",
            "unknown verdict 'perhaps'; known: reproduced",
            "no claims of chapter 'nosuch'; known: rank",
            "no recorded figure 'fig-nosuch'; known: none",
            "no environment",
            "evidence for unknown claim 'rank.stranger'; known: rank.grows",
            "rank.half: samples: 1 given, 8 seeds needed at scale 'book'",
            "rank.grows is recorded twice: here and in book/rank/flow",
            "two: cell 2: a picture without alternative text, caption and name",
        ):
            assert message in done.log, attempt


def test_an_unknown_claim_fails_a_build_without_warnings_as_errors(tmp_path):
    folder = write(tmp_path / "book")
    assert build(folder, strict=False).code == 0
    index = folder / "index.md"
    index.write_text(index.read_text("utf-8") + "\n{verdict}`rank.nosuch`\n", "utf-8")
    done = build(folder, strict=False)
    assert done.code != 0
    assert "unknown claim 'rank.nosuch'" in done.log


def test_a_malformed_claim_file_is_one_clear_line(tmp_path):
    folder = write(tmp_path / "book")
    path = folder / "book/rank/claims.yml"
    path.write_text(path.read_text("utf-8").replace("kind: bound", "kind: bond"), "utf-8")
    done = build(folder)
    assert done.code != 0
    assert re.search(r"claims\.yml: claim 'grows': kind: ", done.log)
    assert "Traceback" not in done.log


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at most 1e-12", "at most 10⁻¹²"),
        ("2.5e-07 to 1e+3", "2.5×10⁻⁷ to 10³"),
        ("range -3 to -0.5", "range −3 to −0.5"),
        ("a well-known 2-by-2 case at 1e-4", "a well-known 2-by-2 case at 10⁻⁴"),
    ],
)
def test_numbers_are_set_as_print_does(text, expected):
    assert pretty(text) == expected


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        (Statistic(70.6965, 70.6965, 70.6965, 1, "value"), "70.7"),
        (Statistic(0.50031, 0.4993, 0.5013, 8, "mean", 5e-4), "0.5003"),
        (Statistic(70.6965, 40.0, 101.0, 8, "mean", 15.0), "71"),
        (Statistic(3.0, -300.0, 306.0, 8, "mean", 150.0), "3"),
        (Statistic(1.0123, 1.0123, 1.5, 8, "min"), "1.012"),
        (summarise([2.0, 2.0, 2.0], "mean"), "2"),
        (Statistic(0.0, -1.0, 1.0, 8, "mean", 0.5), "0"),
    ],
)
def test_digits_follow_the_interval(statistic, expected):
    assert sensible(statistic) == expected


def test_rules_say_what_they_are_judged_on(book):
    claims: dict[str, Claim] = load(book / "book/rank/claims.yml").claims
    assert rule_words(claims["grows"].accept["book"]) == "at least 0, judged on every sample"
    assert rule_words(claims["half"].accept["book"]).endswith(
        "judged on the whole 95 % interval of the mean".replace(" %", " %")
    )


def test_evidence_without_sphinx_is_left_to_the_other_renderers():
    elements = SimpleNamespace(renderer=SimpleNamespace(sphinx_env=None))
    evidence = Evidence("rank.grows", "book", [1.0], [0.0]).to_json()
    data = SimpleNamespace(mime_type="text/html", output_metadata={MIME: evidence})
    assert Mime.handle_mime(elements, data, False) is None


@pytest.mark.parametrize(
    ("variable", "kept", "address"),
    [
        (
            "someone/something",
            {"launch_buttons", "repository_url", "use_edit_page_button"},
            "https://github.com/someone/something",
        ),
        (None, set(), None),
    ],
)
def test_buttons_link_only_to_a_known_repository(monkeypatch, variable, kept, address):
    monkeypatch.delenv("GITHUB_SERVER_URL", raising=False)
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    if variable:
        monkeypatch.setenv("GITHUB_REPOSITORY", variable)
    options = {"launch_buttons": {"colab_url": "https://colab.example"}, "repository_url": ""}
    repository(None, SimpleNamespace(html_theme_options=options))
    assert kept <= set(options)
    assert options.get("repository_url") == address
    assert kept or not options


def test_an_empty_value_of_the_environment_is_said():
    assert [line[0].astext() for line in shown({})] == ["none"]


def larger(folder, **given):
    """Write what another run of the chapter came to."""
    evidence = {"id": "rank.grows", "scale": "smoke", "samples": [2.5, 2.75, 3.0], "control": [-68.25] * 3} | given
    path = folder / "evidence/smoke/rank/claims.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": {"scale": "smoke"}, "claims": [], "evidence": [evidence]}), "utf-8")


def test_a_larger_run_stands_beside_the_recorded_one_with_a_verdict_of_its_own(edited):
    assert "at scale smoke" not in page(edited, "table")
    larger(edited)
    assert build(edited).code == 0
    (shown,) = re.findall(r'<span class="larger">(.*?)</span></span>', page(edited, "table"))
    assert text_of(shown).startswith("at scale smoke: min 2.5")
    assert text_of(shown).endswith("reproduced")
    # It is judged by the rule of today, not by what was true when it was kept.
    larger(edited, samples=[-2.5, -2.75, -3.0])
    assert build(edited).code == 0
    assert "differs" in re.findall(r'<span class="larger">(.*?)</span></span>', page(edited, "table"))[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"id": "rank.gone"}, "evidence for unknown claim 'rank.gone'"),
        ({"samples": []}, "samples must have at least one number"),
    ],
)
def test_larger_evidence_that_belongs_to_nothing_fails_the_build(edited, more, message):
    larger(edited, **more)
    done = build(edited, strict=False)
    assert done.code != 0
    assert message in done.log


def test_what_was_not_run_at_a_larger_scale_says_so(edited):
    # C03 is of scale paper alone.
    assert text_of(page(edited, "table")).count("at scale paper: not run") == 1
    (edited / "table.md").write_text((edited / "table.md").read_text("utf-8") + "\n```{larger-runs}\n```\n", "utf-8")
    claims = edited / "book/rank/claims.yml"
    text = claims.read_text("utf-8").replace("scales: [smoke, book]", "scales: [smoke, book, paper]", 1)
    text = text.replace("book: 200}}", "book: 200, paper: 9000}, memory: {paper: 2500}}")
    claims.write_text(text, "utf-8")
    assert build(edited).code == 0
    shown = text_of(page(edited, "table"))
    assert shown.count("at scale paper: not run") == 2
    *_, row = re.findall(r"<tr[^>]*>(?:(?!</tr>).)*rank/flow(?:(?!</tr>).)*</tr>", page(edited, "table"), re.DOTALL)
    assert text_of(row).split() == ["rank/flow", "2.5", "h", "2.5", "GB", "not", "run", "—"]

    evidence = {"id": "rank.grows", "scale": "paper", "samples": [2.5, 2.75, 3.0], "control": [-68.25] * 3}
    kept = edited / "evidence/paper/rank/claims.json"
    kept.parent.mkdir(parents=True)
    of_run = {"scale": "paper", "cpu": "A Processor"}
    entry = {"id": "rank.grows", "notebook": "rank/flow"}
    kept.write_text(json.dumps({"environment": of_run, "claims": [entry], "evidence": [evidence]}), "utf-8")
    assert build(edited).code == 0
    assert text_of(page(edited, "table")).count("at scale paper: not run") == 1
    *_, row = re.findall(r"<tr[^>]*>(?:(?!</tr>).)*rank/flow(?:(?!</tr>).)*</tr>", page(edited, "table"), re.DOTALL)
    assert "yes, A Processor" in text_of(row)
    assert "1 of 1 claims" in text_of(row)
