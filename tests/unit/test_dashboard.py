"""The performance dashboard: what it makes of what the benchmarks measured."""

import importlib.util
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def dashboard():
    spec = importlib.util.spec_from_file_location("dashboard", ROOT / "benchmarks" / "dashboard.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["dashboard"] = module  # pydantic looks the module of a class up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["dashboard"]


def row(job, method, seconds, ratio, error=None, ours=False):
    return {"job": job, "method": method, "seconds": seconds, "ratio": ratio, "error": error, "ours": ours}


def raw():
    """Return what pytest-benchmark writes of two benchmarks, as far as it is read."""
    norm = [
        row("norm", "this library", 4e-5, 1.0, 0.0, True),
        row("norm", "copy", 3.2e-4, 8.0, 3e-8),
        row("norm", "by hand", 3e-5, 0.75, 0.0),
        row("norm", "elsewhere", None, None),
    ]
    points = [row("points", "this library", 0.01, 1.0, 0.0, True), row("points", "grid", 0.005, 0.5, 0.092)]
    growth = [
        {"job": "norm, in the width", "method": m, "size": [1, 10], "seconds": [1, 10], "exponent": 1.0}
        for m in ("this library", "copy")
    ]
    return {
        "machine_info": {"cpu": {"brand_raw": "A processor"}, "node": "a host"},
        "datetime": "2001-01-01",
        "benchmarks": [
            {"fullname": "benchmarks/test_path_norm.py::test_a", "extra_info": {"rows": norm, "growth": growth}},
            {"fullname": "benchmarks/test_segments.py::test_b[x]", "extra_info": {"rows": points}},
        ],
    }


@pytest.fixture
def made(dashboard, tmp_path, monkeypatch):
    """Return a function that runs the script on some content, in a folder of its own."""
    for name in ("RESULTS", "TABLES", "FIGURE"):
        monkeypatch.setattr(dashboard, name, tmp_path / "made" / getattr(dashboard, name).name)

    def run(content=None):
        arguments = []
        if content is not None:
            path = tmp_path / "raw.json"
            path.write_text(content if isinstance(content, str) else json.dumps(content))
            arguments = [str(path)]
        return dashboard.main(arguments), tmp_path / "made"

    return run


def test_tables(made):
    status, folder = made(raw())
    assert status == 0
    text = (folder / "dashboard.md").read_text()
    assert "| norm | **this library** | 40 µs | 1.0× | 0 |" in text
    assert "|  | copy | 320 µs | 8.0× | 3e-08 |" in text
    assert "|  | elsewhere | not installed | — | — |" in text
    assert "| points | **this library** | 10 ms | 1.0× | 0 |" in text
    assert "|  | grid | 5.0 ms | 0.50× | 9.2 % |" in text
    assert re.findall("^## (.+)", text, re.MULTILINE) == ["Path norm", "Segments", "Growth", "Measured on"]
    assert "| norm, in the width | this library | 1 to 10 | 1.00 |" in text
    assert "| processor | A processor |" in text
    # Where another method is faster, it says so, and what that costs in accuracy.
    assert "Of 1 job that something else does as accurately, the library is the fastest in 0." in text
    assert "- by hand, 0.75× its time (norm)" in text
    assert "- grid, 0.50× its time, but off by 9.2 % (points)" in text


def test_the_alternative_text_holds_the_finding(made, dashboard):
    _, folder = made(raw())
    (alt,) = re.findall("^:alt: (.+)", (folder / "dashboard.md").read_text(), re.MULTILINE)
    assert "takes 0.75× the library's time in the median, 0.75× at least and 0.75× at most" in alt


def test_neither_date_nor_host_is_kept(made):
    _, folder = made(raw())
    text = (folder / "benchmarks.json").read_text()
    assert "A processor" in text
    assert "2001" not in text
    assert "host" not in text


def test_the_same_from_what_was_kept(made):
    _, folder = made(raw())
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("dashboard.md", "benchmarks.png"):
        (folder / name).unlink()
    assert made()[0] == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_page_and_caption_say_what_counts_as_accurate(made, dashboard):
    most, least = dashboard.LESS_ACCURATE, dashboard.off(dashboard.ROUNDING)
    page = (ROOT / "book/benchmarks.md").read_text("utf-8")
    assert f"at most {most} times the library's, or at most {least};" in page
    _, folder = made(raw())
    assert f"above {most} times the library's and above {least}." in (folder / "dashboard.md").read_text()


def test_text_of_the_figure_is_read_on_a_phone(dashboard, made):
    """No text is smaller than 9 px where 5 inches are 308 px wide, and none is cut off."""
    _, folder = made(raw())
    for results in (
        dashboard.load(folder / "benchmarks.json"),
        dashboard.load(ROOT / "evidence/benchmarks/benchmarks.json"),
    ):
        fig = dashboard.draw(results)
        fig.draw_without_rendering()
        texts = [t for t in fig.findobj(dashboard.mpl.text.Text) if t.get_visible() and t.get_text().strip()]
        assert min(t.get_fontsize() for t in texts) / 72 * 308 / fig.get_figwidth() >= 9
        width, height = fig.bbox.size
        for text in (text for ax in fig.axes for text in ax.texts):
            box = text.get_window_extent()
            inside = box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height
            assert inside, f"{text.get_text()!r} is cut off"
        dashboard.plt.close(fig)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "raw.json: not readable as JSON"),
        ({}, "raw.json: not written by pytest-benchmark"),
        ({**raw(), "benchmarks": []}, "raw.json: rows: list should have at least 1 item"),
        (json.dumps(raw()).replace('"ratio": 8.0', '"ratio": -8.0'), "rows.1.ratio: input should be greater than 0"),
        (json.dumps(raw()).replace('"ratio": 8.0', '"ratio": NaN'), "rows.1.ratio: input should be"),
        (json.dumps(raw()).replace('"ours": true', '"ours": false'), "job 'norm' of Path norm: exactly one row"),
        (json.dumps(raw()).replace('"method": "copy", "sec', '"sec'), "rows.1.method: field required"),
    ],
)
def test_bad_results(made, capsys, content, message):
    status, folder = made(content)
    said = capsys.readouterr().err
    assert status == 1
    assert message in said
    assert said.count("\n") == 1
    assert not folder.exists()


def test_missing_results(made, capsys):
    assert made()[0] == 1
    assert "benchmarks.json: no such file; `make bench` writes it" in capsys.readouterr().err


def test_nobody_edits_the_dashboard_by_hand(dashboard):
    results = dashboard.load(ROOT / "evidence/benchmarks/benchmarks.json")
    assert (ROOT / "evidence/benchmarks/dashboard.md").read_text("utf-8") == dashboard.fragment(results)
    content = (ROOT / "book/_static/benchmarks.png").read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        assert image.text["results"] == dashboard.digest(results)
        assert np.asarray(image.convert("RGBA"))[..., 3].any()


def test_ratios_and_exponents_of_the_committed_results_are_those_of_their_times(dashboard):
    results = dashboard.load(ROOT / "evidence/benchmarks/benchmarks.json")
    for rows in results.jobs().values():
        (ours,) = (row for row in rows if row.ours)
        for row in (row for row in rows if row.seconds is not None):
            assert row.ratio == pytest.approx(row.seconds / ours.seconds, rel=2e-3)
    for entry in results.growth:
        fitted = np.polyfit(np.log(entry.size), np.log(entry.seconds), 1)[0]
        assert entry.exponent == pytest.approx(fitted, abs=5e-3)
