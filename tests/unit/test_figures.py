"""Figures: what they emit, and that it is the same twice."""

import base64

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from implicitreg import figures


@pytest.fixture
def shown(monkeypatch):
    """Collect what `figures.show` displays."""
    calls = []
    monkeypatch.setattr(figures, "display", lambda data, **options: calls.append((data, options["metadata"])))
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
