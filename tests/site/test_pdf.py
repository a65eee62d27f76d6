"""The printed book. `test_broken` shows that the check can fail."""

from pathlib import Path

import checks
import pytest

PDF = Path(__file__).parents[2] / "_build" / "implicit-regularization.pdf"


def test_the_pdf_holds_the_whole_book(site, wanted):
    if not PDF.is_file():
        pytest.fail(f"no {PDF.name}: make pdf", pytrace=False)
    headings = [checks.soup(site / name).select_one("article h1") for name in wanted]
    titles = [heading.get_text().removesuffix("#").strip() for heading in headings]
    drawn = {one["src"].rpartition("/")[2] for name in wanted for one in checks.soup(site / name).select("figure img")}
    assert checks.pdf(PDF, titles, len(drawn)) == []
