"""Figures: what they emit, and that it is the same twice."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import seaborn
from PIL import Image

from implicitreg import figures
from implicitreg.figures import Curve, Frames, Panel, Still, explorer, plots


@pytest.fixture
def shown(monkeypatch):
    """Collect what is displayed."""
    calls = []
    for module in (explorer, plots):
        monkeypatch.setattr(module, "display", lambda data, **options: calls.append((data, options.get("metadata"))))
    return calls


def draw():
    mpl.use("Agg")
    figures.style()
    fig, ax = plt.subplots()
    ax.plot([0, 1], [0, 1])
    figures.bound(ax, [0, 1], [1, 0], "bound", (0.5, 0.5))
    return fig


def luminance(colour):
    channels = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in mpl.colors.to_rgb(colour)]
    return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_picture_then_caption(shown):
    figures.show(draw(), alt="The line reaches 1.", caption="A line.", name="fig-line")
    (picture, meta), (caption, caption_meta) = shown
    assert base64.b64decode(picture["image/png"]).startswith(b"\x89PNG")
    assert b"Software" not in base64.b64decode(picture["image/png"])
    assert picture["text/plain"] == meta["image/png"]["alt"] == "The line reaches 1."
    assert meta["image/png"]["name"] == caption_meta["text/markdown"]["caption_of"] == "fig-line"
    assert caption["text/markdown"] == meta["image/png"]["caption"] == "A line."
    assert not plt.get_fignums()


def test_the_same_bytes_twice(shown):
    for _ in range(2):
        figures.show(draw(), alt="a", caption="c", name="n")
    assert shown[0] == shown[2]


@pytest.mark.parametrize("empty", ["alt", "caption", "name"])
def test_nothing_may_be_missing(empty):
    fig = draw()
    with pytest.raises(ValueError, match=f"^{empty}: must not be empty"):
        figures.show(fig, **{"alt": "a", "caption": "c", "name": "n", empty: " "})
    plt.close(fig)


def test_readable_on_light_and_on_dark():
    for ground in ("#ffffff", "#121212"):
        assert contrast(figures.INK, ground) >= 4
        assert all(contrast(colour, ground) >= 3 for colour in figures.COLOURS), ground
    # The book's style sheet shows figures a fifth brighter on its dark ground.
    style = (Path(__file__).parents[2] / "book/_static/implicitreg.css").read_text("utf-8")
    brighter = float(re.search(r"filter: brightness\(([\d.]+)\)", style)[1])
    ink = [min(1.0, brighter * c) for c in mpl.colors.to_rgb(figures.INK)]
    assert contrast(figures.INK, "#ffffff") >= 4.5
    assert contrast(ink, "#121212") >= 4.5


def emitted(shown, fig):
    """Return the metadata of a figure that is shown."""
    figures.show(fig, alt="a", caption="c", name="n")
    return shown[0][1]["image/png"]


def series(shown, fig):
    """Return the data of a figure, panel and name to the rest."""
    found = json.loads(emitted(shown, fig)["data"])
    assert all(len(d["x"]) == len(d["y"]) == len(d.get("y_to", d["x"])) for d in found)
    named = {(d["panel"], d["series"], d["kind"]): d for d in found}
    assert len(named) == len(found)
    return {key[:2]: d for key, d in named.items()}


def two_columns():
    figures.style()
    fig, axes = plt.subplots(2, 2, figsize=(8, 5), sharex=True)
    for i, ax in enumerate(axes.flat):
        ax.plot([1, 2], [i, i + 1])
        ax.set(title=f"Panel {i}", ylabel="height")
    return fig, axes


def test_a_picture_is_cut_between_its_columns(shown):
    fig, _ = two_columns()
    meta = emitted(shown, fig)
    (cut,) = meta["cuts"]
    picture = plt.imread(io.BytesIO(base64.b64decode(shown[0][0]["image/png"])), format="png")
    assert not picture[:, cut, 3].any()
    assert 0.4 < cut / picture.shape[1] < 0.6
    # On either side of it something is drawn.
    assert picture[:, :cut, 3].any()
    assert picture[:, cut:, 3].any()


def test_one_column_is_not_cut(shown):
    figures.style()
    fig, axes = plt.subplots(2, 1)
    axes[0].plot([0, 1])
    assert emitted(shown, fig)["cuts"] == []


@pytest.mark.parametrize("reaching", ["suptitle", "supxlabel", "text"])
def test_nothing_may_reach_from_column_to_column(shown, reaching):
    fig, axes = two_columns()
    if reaching == "suptitle":
        fig.suptitle("a title over both columns of panels, wide enough to reach into each of them")
    elif reaching == "supxlabel":
        fig.supxlabel("shared")
    else:
        axes[0, 0].text(1.5, 0.5, "a label that leaves its panel and runs into the next one", in_layout=False)
    with pytest.raises(ValueError, match="reaches from one column of panels into the next"):
        emitted(shown, fig)
    assert shown == []
    plt.close(fig)


def test_the_size_of_the_smallest_text_is_told(shown):
    fig, axes = two_columns()
    axes[0, 0].text(1.5, 0.5, "small", fontsize=7)
    axes[0, 1].text(1.5, 0.5, "", fontsize=3)
    assert emitted(shown, fig)["text"] == 7


def test_a_picture_has_a_palette_and_stays_what_it_was(shown):
    fig = draw()
    fig.set_dpi(150)
    figures.show(fig, alt="a", caption="c", name="n")
    with Image.open(io.BytesIO(base64.b64decode(shown[0][0]["image/png"]))) as image:
        assert image.mode == "P"
        colours = image.convert("RGBA").getcolors(1 << 16)
    opaque = {rgba[:3] for _, rgba in colours if rgba[3] > 250}
    wanted = tuple(round(255 * c) for c in mpl.colors.to_rgb(figures.COLOURS[0]))
    assert min(max(abs(a - b) for a, b in zip(wanted, rgb, strict=True)) for rgb in opaque) <= 4


def test_the_data_are_what_is_drawn(shown):
    figures.style()
    fig, ax = plt.subplots()
    ax.set(title="Growth", xlabel="time", ylabel="size")
    ax.plot([1, 2, 3], [1, np.nan, 1 / 3], label="named")
    ax.plot([1, 2], [5, 6], color=figures.COLOURS[1])
    ax.text(2, 6, "by its colour", color=figures.COLOURS[1])
    ax.fill_between([1, 2], [0, 1], [2, 4], color=figures.COLOURS[2])
    ax.errorbar([1, 2], [3, 4], yerr=[0.5, 1], label="with errors", capsize=3, color=figures.COLOURS[3])
    ax.axhline(7, label="limit")
    figures.bound(ax, [1, 2], [8, 9], "law", (1, 8))
    figures.published(ax, [1.5], [2.5], "published errors")
    ax.scatter([1], [2], color="black", label="a point")
    ax.stairs([1, 2], [0, 1, 3], label="steps of it")
    found = series(shown, fig)
    assert {panel for panel, _ in found} == {"Growth"}
    named = {name: d for (_, name), d in found.items()}
    assert (named["named"]["x"], named["named"]["y"]) == ([1, 2, 3], [1, None, 0.333333])
    assert named["named"]["x_label"] == "time"
    assert named["named"]["y_label"] == "size"
    assert named["by its colour"]["y"] == [5, 6]
    assert (named["band"]["y"], named["band"]["y_to"]) == ([0, 1], [2, 4])
    assert named["limit"]["y"] == [7]
    assert named["law"]["y"] == [8, 9]
    assert (named["published errors"]["kind"], named["published errors"]["x"]) == ("points", [1.5])
    assert named["a point"]["y"] == [2]
    assert named["steps of it"]["x_to"] == [1, 3]
    of_errors = [d for (_, name), d in found.items() if name.startswith("with errors")]
    bars = next(d for d in json.loads(shown[0][1]["image/png"]["data"]) if d["kind"] == "error bar")
    assert of_errors
    assert (bars["series"], bars["y"], bars["y_to"]) == ("with errors", [2.5, 3], [3.5, 5])


def unknown(kind):
    fig, ax = plt.subplots(subplot_kw={"projection": "polar"} if kind == "polar" else {})
    grid = np.arange(6.0).reshape(2, 3)
    if kind == "image":
        ax.imshow(grid)
    elif kind == "mesh":
        ax.pcolormesh(grid)
    elif kind == "sideways":
        ax.fill_betweenx([0, 1], [0, 1], [1, 2])
    elif kind == "names":
        ax.plot(["a", "b"], [1, 2])
    elif kind == "arrows":
        ax.quiver(grid, grid)
    return fig


@pytest.mark.parametrize("kind", ["image", "mesh", "sideways", "names", "arrows", "polar"])
def test_what_it_cannot_tell_is_refused_rather_than_told_wrong(shown, kind):
    figures.style()
    fig = unknown(kind)
    with pytest.raises(ValueError, match=r"^fig: "):
        emitted(shown, fig)
    assert shown == []
    plt.close(fig)


def test_bars_and_logarithmic_axes(shown):
    figures.style()
    fig, ax = plt.subplots()
    ax.set(title="Counts", yscale="log")
    ax.bar([1, 2], [10, 100], width=0.5, label="bars")
    ax.plot([1, 2], [1e-3, 1e3], label="line")
    found = series(shown, fig)
    bars = found["Counts", "bars"]
    assert (bars["x"], bars["x_to"], bars["y_to"]) == ([0.75, 1.75], [1.25, 2.25], [10, 100])
    assert found["Counts", "line"]["y"] == [1e-3, 1e3]


def test_a_figure_needs_axes_and_a_name_for_files(shown):
    with pytest.raises(ValueError, match=r"^fig: has no axes"):
        figures.show(plt.figure(), alt="a", caption="c", name="n")
    for name in ("a/b", "../x", "a b", "A#b"):
        with pytest.raises(ValueError, match=r"^name: must be"):
            figures.show(draw(), alt="a", caption="c", name=name)
    assert shown == []
    plt.close("all")


def test_what_repeats_is_numbered_and_contours_have_levels(shown):
    figures.style()
    fig, ax = plt.subplots()
    ax.plot([0, 1], [0, 1], color="0.3")
    ax.plot([0, 1], [1, 0], color="0.3")
    grid = np.linspace(0, 1, 5)
    ax.contour(grid, grid, np.outer(grid, grid), levels=[0.25])
    ax.set_ylabel("height")
    found = series(shown, fig)
    assert {name for _, name in found} == {"line 1", "line 2", "level 0.25"}
    x, y = (np.array(found["height", "level 0.25"][key]) for key in ("x", "y"))
    assert abs(x * y - 0.25).max() < 0.02


def test_the_style_is_seaborns_ticks_with_our_settings():
    """All but two that nothing of ours reads: seaborn's colour map, and fonts that give way to another family."""
    ink = ("axes.edgecolor", "axes.labelcolor", "grid.color", "text.color", "xtick.color", "ytick.color")
    ours = {
        **dict.fromkeys(ink, figures.INK),
        "axes.facecolor": "none",
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "figure.constrained_layout.use": True,
        "figure.facecolor": "none",
        "font.family": "DejaVu Sans",
        "legend.frameon": False,
        "lines.linewidth": 1.8,
    }
    found = []
    for set_style in (
        figures.style,
        lambda: seaborn.set_theme(context="notebook", style="ticks", palette=list(figures.COLOURS), rc=ours),
    ):
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.use("Agg")
            set_style()
            cycle = [mpl.colors.to_hex(colour).upper() for colour in plt.rcParams["axes.prop_cycle"].by_key()["color"]]
            found.append({**mpl.rcParams, "axes.prop_cycle": cycle})
    assert found[0].keys() == found[1].keys()
    assert {key for key, value in found[0].items() if value != found[1][key]} <= {"image.cmap", "font.sans-serif"}


# ---------------------------------------------------------------------------------------------------------------------
# Figures that follow a slider


class Elements(HTMLParser):
    """All elements of a fragment, with their attributes; refuses one that is not closed where it was opened."""

    EMPTY = ("input", "path", "circle", "polyline")

    def __init__(self, html):
        super().__init__()
        self.found, self.open, self.script, self.texts = [], [], "", []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.script += data
        if self.open[-1:] == ["text"]:
            self.texts.append((data, self.found[-1][1]))

    def all(self, tag, **attributes):
        return [a for t, a in self.found if t == tag and attributes.items() <= a.items()]

    def data(self):
        """Return what the script is given."""
        return json.loads(re.search(r'getElementById\("[^"]+"\), (.*)\);', self.script)[1])


def hat(label="output", **more):
    return Curve(label, **{"at": [0, 0.25, 1], "y": [0, 3, 0], **more})


def explored(shown, *panels, **more):
    panels = panels or (Panel("output", [hat()]),)
    given = {"name": "explore-hat", "label": "position", "symbol": "t", "stops": [0, 0.5, 1], "alt": "A hat."}
    figures.explore(panels, **given | more)
    data, _ = shown[-1]
    assert data["text/plain"] == (given | more)["alt"]
    return Elements(data["text/html"])


def test_slider_is_a_labelled_native_control(shown):
    page = explored(shown, start=1, stops=[0, 0.5, 1])
    (control,) = page.all("input")
    assert control["type"] == "range"
    assert (control["min"], control["max"], control["step"], control["value"]) == ("0", "2", "1", "1")
    assert page.all("label", **{"for": control["id"]})
    assert page.all("output", **{"for": control["id"]})
    assert page.all("div", id="explore-hat", role="group", **{"aria-label": "A hat."})
    assert page.all("p", role="status")
    # Dead controls are not shown, the curves are: the script takes the place of the note.
    assert "hidden" in page.all("div", **{"class": "ir-control"})[0]
    assert "hidden" not in page.all("div", **{"class": "ir-body"})[0]
    assert "hidden" not in page.all("p", **{"class": "ir-note"})[0]


def test_nothing_is_loaded(shown):
    page = explored(shown, frames=Frames("a blend", [0, 1], [[[0]], [[1]]]))
    assert not [a for _, a in page.found if {"src", "href", "onload", "onclick"} & a.keys()]
    assert not re.search(r"https?:|@import|url\(|fetch|import\(", shown[-1][0]["text/html"])


def test_curves_are_drawn_where_the_script_puts_the_marker(shown):
    page = explored(shown)
    data = page.data()
    left, right, top = data["plane"]
    (panel,) = data["panels"]
    points = [tuple(map(float, p.split(","))) for p in page.all("polyline")[0]["points"].split()]
    low, high, log = panel["y"]
    across = [left, left + (right - left) / 4, right]
    up = [panel["low"] + (y - low) / (high - low) * (top + 4 - panel["low"]) for y in (0, 3, 0)]
    assert not log
    assert float(re.fullmatch(r"M48 8V(\d+)H312", page.all("path")[0]["d"])[1]) > panel["low"]
    assert points == [pytest.approx(p, abs=0.051) for p in zip(across, up, strict=True)]


def test_data_of_curves(shown):
    curves = [
        Curve("falling", at=[1, 0.5, 0], y=[3, 2, 1]),
        Curve("steps", at=[0, 1 / 3, 1], y=[1, -2 / 3]),
    ]
    data = explored(shown, Panel("both", curves), readouts=[hat("kinks")]).data()
    falling, steps = data["panels"][0]["curves"]
    assert falling == {"label": "falling", "at": [0, 0.5, 1], "y": [1, 2, 3], "step": False}
    assert steps == {"label": "steps", "at": [0, 0.3333, 1], "y": [1, -0.6667], "step": True}
    assert data["readouts"][0]["label"] == "kinks"
    assert data["stops"] == [0, 0.5, 1]


def test_step_functions_are_drawn_as_stairs(shown):
    page = explored(shown, Panel("slope", [Curve("steps", at=[0, 0.5, 1], y=[0, 1])]))
    points = [tuple(map(float, p.split(","))) for p in page.all("polyline")[0]["points"].split()]
    assert len(points) == 4
    assert points[0][1] == points[1][1] > points[2][1] == points[3][1]
    assert points[1][0] == points[2][0]


def test_phase_portraits_have_two_axes_of_their_own(shown):
    turn = Curve("orbit", at=[0, 1, 2], x=[1, 0, -1], y=[0, 1, 0], marks=[1])
    page = explored(shown, Panel("b", [turn], x_label="a"), stops=[0, 1, 2])
    panel = page.data()["panels"][0]
    assert panel["x"][:2] == [-1, 1]
    assert panel["curves"][0]["x"] == [1, 0, -1]
    assert not page.all("path", **{"class": "ir-at"})
    assert len(page.all("path", **{"class": "ir-beads"})) == 1


def portrait(*stills, **more):
    turn = Curve("orbit", **{"at": [0, 1, 2], "x": [1, 0, -1], "y": [0, 1, 0], **more})
    return Panel("b", [turn], x_label="a", stills=stills)


def placed(panel, x, y):
    """Where the script would put a marker."""
    (left, right), (bottom, top) = panel["x"][:2], panel["y"][:2]
    plane = 48 + panel["pad"], 312 - panel["pad"]
    across = plane[0] + (x - left) / (right - left) * (plane[1] - plane[0])
    return pytest.approx((across, panel["low"] + (y - bottom) / (top - bottom) * (12 - panel["low"])), abs=0.051)


def test_still_lines_and_points_are_drawn_where_a_marker_would_be(shown):
    stills = Still([-2, 0], [3, 1], "level", colour=2, dashed=True), Still(1, -1, "<p>", side="left")
    page = explored(shown, portrait(*stills))
    panel = page.data()["panels"][0]
    assert panel["x"][:2] == [-2, 1]
    assert panel["y"][:2] == [-1, 3]
    line, orbit = page.all("polyline")
    assert line["class"] == "ir-still"
    assert (line["stroke"], orbit["stroke"]) == (figures.COLOURS[2], figures.COLOURS[0])
    assert "stroke-dasharray" in line
    ends = [tuple(map(float, p.split(","))) for p in line["points"].split()]
    assert ends == [placed(panel, -2, 3), placed(panel, 0, 1)]
    (spot,) = page.all("path", **{"class": "ir-spot"})
    assert spot["stroke"] == "currentColor"
    assert tuple(map(float, re.fullmatch(r"M(\S+) (\S+)h0", spot["d"]).groups())) == placed(panel, 1, -1)
    # The script moves one circle for each curve, and writes one number: none for what stands still.
    assert len(page.all("circle")) == len(page.all("b")) == len(panel["curves"]) == 1


def test_direct_labels_stand_beside_their_points(shown):
    sides = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
    stills = [Still([1, 0], [0, 0.5], side, side=side, colour=1) for side in sides]
    page = explored(shown, portrait(*stills, Still([0, 1], [0, 0]), named_at=1.5, side="above"))
    panel = page.data()["panels"][0]
    names = {text: a for text, a in page.texts if "style" in a}
    assert list(names) == [*sides, "orbit"]
    here = placed(panel, 0, 0.5).expected
    for side, (right, down) in sides.items():
        shift = float(names[side]["x"]) - here[0], float(names[side]["y"]) - here[1] - (0 if down else 4)
        assert np.sign(np.round(shift)).tolist() == [right, down], side
        assert names[side]["style"] == f"fill:{figures.COLOURS[1]}"
    assert names["orbit"]["style"] == f"fill:{figures.COLOURS[0]}"
    assert float(names["orbit"]["x"]) == placed(panel, -0.5, 0.5).expected[0]
    plain = explored(shown, portrait(Still([1, 0], [0, 0.5])))
    assert not [a for _, a in plain.texts if "style" in a]
    first = explored(shown, portrait(Still([0, 1, 1], [0.5, 0, 1], "first", named_at=0)))
    (name,) = [a for _, a in first.texts if "style" in a]
    assert float(name["x"]) == float(names["right"]["x"])


def test_stills_of_a_chart_over_the_sliders_variable(shown):
    level = Still([0.01, 1], [1e-3, 1e-3], "level", side="above")
    loss = [1.0, 0.1, 0.01]
    page = explored(
        shown, Panel("norm", [Curve("norm", at=loss, y=loss)], log=True, stills=[level]), stops=loss, log=True
    )
    assert page.data()["panels"][0]["y"] == [0.001, 1, True]
    points = [tuple(map(float, p.split(","))) for p in page.all("polyline")[0]["points"].split()]
    assert points == [(312, 160), (48, 160)]


def test_falling_stops_turn_the_axis(shown):
    loss = [1.0, 0.1, 0.01]
    page = explored(shown, Panel("norm", [Curve("norm", at=loss, y=loss)], log=True), stops=loss, log=True)
    panel = page.data()["panels"][0]
    assert panel["x"] == [1, 0.01, True]
    assert panel["y"] == [0.01, 1, True]
    x = [float(p.split(",")[0]) for p in page.all("polyline")[0]["points"].split()]
    assert x == sorted(x, reverse=True)  # data is kept rising, and drawn from the right
    assert "10⁻²" in shown[-1][0]["text/html"]


def test_marks_are_strokes_within_the_segment(shown):
    page = explored(shown, Panel("output", [hat(marks=[0.25, 0.5, 7])]))
    (rug,) = page.all("path", **{"class": "ir-rug"})
    assert rug["d"].count("M") == 2


def test_blend_of_two_pictures(shown):
    page = explored(shown, frames=Frames("From 3 to <8>", [0, 1], [[[0, 16], [8, 8]], [[0, 0], [0, 4]]]))
    frames = page.data()["frames"]
    assert frames["size"] == [2, 2]
    assert frames["grey"] == [[0, 255, 127.5, 127.5], [0, 0, 0, 63.75]]
    (canvas,) = page.all("canvas")
    assert canvas == {"width": "2", "height": "2", "role": "img", "aria-label": "From 3 to <8>"}


def test_labels_are_text_everywhere(shown):
    bad = "</script><b onload='x'>&\"\u2028"
    page = explored(
        shown,
        Panel(bad, [hat(bad, named_at=0.5)], x_label=bad, stills=[Still(0, 0, bad)]),
        readouts=[hat(bad)],
        frames=Frames(bad, [0, 1], [[[0]], [[1]]]),
        **dict.fromkeys(("label", "symbol", "alt"), bad),
    )
    assert len(page.all("script")) == 1
    assert not any("onload" in a for _, a in page.found)
    assert page.data()["panels"][0]["curves"][0]["label"] == bad
    assert "\u2028" not in page.script


def test_the_same_text_twice_and_no_clash(shown):
    noise = np.random.default_rng(0).normal(size=50)
    for name, more in (("a", noise), ("a", noise * (1 + 1e-9)), ("b", noise)):
        explored(shown, Panel("noise", [Curve("noise", at=np.arange(50), y=more)]), name=name, stops=[0, 49])
    first, again, other = (data["text/html"] for data, _ in shown)
    assert first == again
    ids = [{a["id"] for _, a in Elements(html).found if "id" in a} for html in (first, other)]
    assert not ids[0] & ids[1]


@pytest.mark.parametrize(
    ("panels", "more", "error", "words"),
    [
        ([], {}, ValueError, "panels: must hold at least one panel"),
        (["output"], {}, TypeError, r"panels\[0\]: must be a Panel, got str"),
        ([Panel("", [hat()])], {}, ValueError, r"panels\[0\].title: must not be empty"),
        ([Panel("f", [])], {}, ValueError, r"panels\[0\].curves: must hold at least one curve"),
        ([Panel("f", [3])], {}, TypeError, r"panels\[0\].curves\[0\]: must be a Curve, got int"),
        ([Panel("f", [hat(" ")])], {}, ValueError, r"panels\[0\].curves\[0\].label: must not be empty"),
        ([Panel("f", [hat(at=[0, 1, 0.5])])], {}, ValueError, r"at: must be rising or falling$"),
        ([Panel("f", [hat(at=[0])])], {}, ValueError, r"at: must have shape \(n,\) with n >= 2, got \(1,\)"),
        ([Panel("f", [hat(y=[1])])], {}, ValueError, r"y: must have shape \(3,\) or \(2,\), got \(1,\)"),
        ([Panel("f", [hat(y=[1, float("nan"), 2])])], {}, ValueError, r"y: must be finite"),
        ([Panel("f", [hat(y=["a", "b", "c"])])], {}, ValueError, r"y: must be numbers, got list"),
        ([Panel("f", [hat(x=[1, 2])], x_label="a")], {}, ValueError, r"x: must have the shape of at and y"),
        ([Panel("f", [hat(x=[1, 2, 3])])], {}, ValueError, r"x_label: must name what the curves' x is"),
        ([Panel("f", [hat(x=[1, 2, 3]), hat()], x_label="a")], {}, ValueError, "either all or none"),
        ([Panel("f", [hat(colour=5)])], {}, ValueError, "colour: must be less than 5, got 5"),
        ([Panel("f", [hat(side="up")])], {}, ValueError, "side: must be one of left, right, above, below, got 'up'"),
        ([Panel("f", [hat(named_at=2)])], {}, ValueError, "named_at: must be from 0 to 1, got 2"),
        ([Panel("f", [hat(named_at="end")])], {}, ValueError, "named_at: must be from 0 to 1, got 'end'"),
        ([portrait((1, 2))], {}, TypeError, r"panels\[0\].stills\[0\]: must be a Still, got tuple"),
        (
            [portrait(Still([0, 1], [0]))],
            {},
            ValueError,
            r"stills\[0\]: x and y must have one shape \(n,\) with n >= 1",
        ),
        ([portrait(Still([], []))], {}, ValueError, r"stills\[0\]: x and y must have one shape \(n,\) with n >= 1"),
        ([portrait(Still(0, float("inf")))], {}, ValueError, r"stills\[0\].y: must be finite"),
        ([portrait(Still(0, 0, named_at=1))], {}, ValueError, "named_at: must be an index of 1 points, got 1"),
        ([portrait(Still(0, 0, named_at=-0.5))], {}, ValueError, "named_at: must be an index of 1 points, got -0.5"),
        ([portrait(Still(0, 0, named_at="p"))], {}, ValueError, "named_at: must be an index of 1 points, got 'p'"),
        ([portrait(Still(0, 0, colour=5))], {}, ValueError, r"stills\[0\].colour: must be less than 5, got 5"),
        ([portrait(Still(0, 0, side=""))], {}, ValueError, r"stills\[0\].side: must be one of left, right"),
        ([Panel("f", [hat()], log=True)], {}, ValueError, "must be > 0 on a logarithmic axis"),
        (None, {"log": True}, ValueError, "stops: must be > 0 on a logarithmic axis"),
        (None, {"stops": [0, 0, 1]}, ValueError, "stops: must be strictly rising or falling, to 4 significant digits"),
        (None, {"stops": [[0, 1]]}, ValueError, r"stops: must have shape \(n,\)"),
        (None, {"start": 3}, ValueError, "start: must be less than the number of stops, 3, got 3"),
        (None, {"start": -1}, ValueError, "start: must be an integer >= 0, got -1"),
        (None, {"name": "Über uns"}, ValueError, "name: must be small letters"),
        (None, {"alt": " "}, ValueError, "alt: must not be empty"),
        (None, {"symbol": ""}, ValueError, "symbol: must not be empty"),
        (None, {"frames": "no"}, TypeError, "frames: must be Frames, got str"),
        (
            None,
            {"frames": Frames("f", [0, 1], [[1]])},
            ValueError,
            r"frames.pixels: must have shape \(2, height, width\)",
        ),
        (None, {"readouts": [hat(), 1]}, TypeError, r"readouts\[1\]: must be a Curve, got int"),
    ],
)
def test_refusals(shown, panels, more, error, words):
    with pytest.raises(error, match=words):
        figures.explore(
            [Panel("f", [hat()])] if panels is None else panels,
            **{"name": "x", "label": "l", "symbol": "t", "stops": [0, 0.5, 1], "alt": "a"} | more,
        )
    assert shown == []
