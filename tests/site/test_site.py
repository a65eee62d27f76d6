"""The site as its readers meet it. `test_broken` shows that each of these checks can fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import browsing
import checks
import pytest

ROOT = Path(__file__).parents[2]
PAGES = checks.contents(ROOT / "_toc.yml")
NOTEBOOKS = [name for name in PAGES if (ROOT / name).with_suffix(".ipynb").is_file()]
VERDICTS = "book/verdicts.html"


def judge(found):
    """Fail with every complaint, one a line."""
    if found:
        pytest.fail("\n".join(dict.fromkeys(found)), pytrace=False)


def test_every_page_of_the_contents_is_there_and_says_something(site, wanted):
    judge(checks.pages(site, wanted))


def test_nothing_is_loaded_from_elsewhere(site):
    judge(checks.foreign(site))


def test_every_link_within_the_site_leads_somewhere(site):
    judge(checks.links(site))


def test_the_site_and_its_pages_are_small(site, wanted):
    judge(checks.size(site, wanted))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_and_the_numbers_of_its_figures_can_be_taken_away(site, name):
    judge(checks.downloads(site, name))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_in_the_browser(visit, home, name):
    page, watch = visit(name)
    found = checks.typeset(page) + checks.images(page) + checks.figures(page) + checks.interactive(page)
    browsing.unfold(page)
    found += checks.scroll(page, (1280, 768, 360)) + checks.axe(page, checks.WIDTH_RULES)
    page.set_viewport_size({"width": 1280, "height": 900})
    found += checks.axe(page) + checks.colours(page)
    browsing.in_theme(page, "dark")
    found += [f"dark: {what}" for what in checks.colours(page) + checks.figures(page)]
    found += checks.outside(watch.addresses, home) + watch.errors
    judge(found)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_from_a_disk(visit, site, name):
    home = f"{site.as_uri()}/"
    page, watch = visit(home + name)
    judge(checks.outside(watch.addresses, home) + watch.errors + checks.typeset(page) + checks.images(page))


@pytest.mark.parametrize("from_disk", [False, True], ids=["server", "disk"])
def test_the_address_of_the_book_leads_to_its_first_page(started, home, site, wanted, from_disk):
    address = f"{site.as_uri()}/" if from_disk else home
    page = browsing.context(started).new_page()
    page.goto(address + ("index.html" if from_disk else ""))
    page.wait_for_url(address + wanted[0])
    page.context.close()


def test_the_verdict_table_is_filtered_by_keys(visit):
    page, _ = visit(VERDICTS)
    judge(checks.filters(page))


def test_without_scripts_nothing_is_lost(visit, site):
    page, _ = visit(VERDICTS, scripts=False)
    found = checks.plain_verdicts(page)
    with_sliders = [name for name in PAGES if checks.soup(site / name).select(".ir-explore")]
    # The segment, the loss of the 2×2 matrix, the phase portrait.
    wanted = {f"book/{name}.html" for name in ("curvature/line", "rank/flow", "data_dependence/two_points")}
    assert wanted <= set(with_sliders)
    for name in with_sliders:
        page, _ = visit(name, scripts=False)
        found += [f"{name}: {what}" for what in checks.plain_figures(page)]
    judge(found)


@pytest.mark.parametrize("from_disk", [False, True], ids=["server", "disk"])
def test_search_finds_a_theorem_by_its_name(visit, home, site, wanted, from_disk):
    # A box of each page; from a disk of some.
    named = [(name, *next(iter(found.items()))) for name in wanted if (found := checks.boxes(site, name))]
    assert len(named) >= 8
    address = f"{site.as_uri()}/" if from_disk else home
    page, watch = visit(address + "search.html")
    found = []
    for name, anchor, title in named[:: 4 if from_disk else 1]:
        found += checks.search(page, address, title, anchor, name)
    page.wait_for_load_state("networkidle")
    found += checks.outside(watch.addresses, address) + list(dict.fromkeys(watch.errors))
    judge(found)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Build the pages as the one who publishes them does, with their names and a line of text each."""
    folder = tmp_path_factory.mktemp("published")
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "book" / "_static", folder / "book" / "_static")
    shutil.copy(ROOT / "book" / "references.bib", folder / "book")
    for name in PAGES:
        source = folder / name
        source.parent.mkdir(parents=True, exist_ok=True)
        if name in NOTEBOOKS:
            source.with_suffix(".ipynb").write_text(
                '{"cells": [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Page"}], "metadata": '
                '{"kernelspec": {"name": "python3", "display_name": "Python 3"}}, "nbformat": 4, "nbformat_minor": 5}',
                "utf-8",
            )
        else:
            source.with_suffix(".md").write_text("# Page\n", "utf-8")
    command = [sys.executable, "-P", "-c", "from jupyter_book.cli.main import main; main()", "build", str(folder)]
    variables = {**os.environ, "GITHUB_REPOSITORY": "someone/something"}
    variables.pop("GITHUB_SERVER_URL", None)
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "_build" / "html"


def test_launch_buttons_name_files_of_the_repository(published, tracked):
    judge(checks.launch(published, PAGES, "someone/something", tracked))
    assert checks.launch(published, PAGES, "someone/something", tracked - {NOTEBOOKS[0].replace("html", "ipynb")})
    # Binder builds from this file.
    assert {".binder/environment.yml", ".binder/postBuild", ".binder/start"} <= set(tracked)
