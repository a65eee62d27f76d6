"""How results look: one style for every figure, readable on light and on dark ground, and one way to show it."""

import base64
import io
import json
import re
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from cycler import cycler
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from implicitreg.figures import drawn

INK = "#767676"
"""Axes, ticks and text: contrast of at least 4:1 on white and on the book's dark ground alike."""

COLOURS = ("#2F86D6", "#D55E00", "#009E73", "#AA5FB9", "#B58900")
"""Distinguishable with any common colour blindness, at least 3:1 on white and on dark ground."""


def style() -> None:
    """Set the book's look: transparent ground, mid-grey ink, the palette, no needless lines.

    Examples
    --------
    >>> style()
    >>> mpl.rcParams["text.color"]
    '#767676'
    """
    # A figure made before any backend is chosen would be shown a second time by the inline backend.
    plt.switch_backend(mpl.get_backend())
    # Seaborn's theme "ticks" with settings of our own, written out: importing seaborn takes most of a second.
    mpl.rcParams.update(
        {
            **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "grid.color", "text.color"), INK),
            **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
            **dict.fromkeys(("axes.spines.right", "axes.spines.top", "legend.frameon"), False),
            **dict.fromkeys(("axes.labelsize", "axes.titlesize", "font.size", "legend.title_fontsize"), 12),
            "axes.axisbelow": True,
            "axes.linewidth": 1.25,
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.titlelocation": "left",
            "figure.constrained_layout.use": True,
            "font.family": "DejaVu Sans",
            "grid.linewidth": 1,
            "legend.fontsize": 11,
            "lines.linewidth": 1.8,
            "lines.solid_capstyle": "round",
            "patch.edgecolor": "w",
            "patch.force_edgecolor": True,
        }
    )
    for axis in ("xtick", "ytick"):
        ticks = {"major.size": 6, "major.width": 1.25, "minor.size": 4, "minor.width": 1}
        mpl.rc(axis, color=INK, labelsize=11, **ticks)


def bound(ax: Axes, x: ArrayLike, y: ArrayLike, label: str, at: tuple[float, float], **text: Any) -> None:
    """Draw a theorem's bound: dashed, in ink, named beside the line.

    Parameters
    ----------
    ax
        Where to draw.
    x, y
        Points of the line.
    label
        Its name.
    at
        Position of the name, in data coordinates.
    **text
        Further properties of the name, as for `matplotlib.axes.Axes.text`.
    """
    ax.plot(x, y, color=INK, linestyle="--", linewidth=1.4, zorder=1, gid=label)
    ax.text(at[0], at[1], label, **{"color": INK, "fontsize": "small", **text})


def published(ax: Axes, x: ArrayLike, y: ArrayLike, label: str = "published") -> None:
    """Draw published values: thin crosses, in ink, above everything else.

    Parameters
    ----------
    ax
        Where to draw.
    x, y
        The values.
    label
        Their name in the figure's data, and in its legend where it has one.
    """
    ax.plot(x, y, "x", color=INK, markersize=8, markeredgewidth=1.4, zorder=5, label=label)


def _small(picture: io.BytesIO) -> bytes:
    """Return a PNG with a palette of 256 colours: a third of the size, and the same to the eye."""
    content = io.BytesIO()
    with Image.open(picture) as image:
        image.convert("RGBA").quantize(256, method=Image.Quantize.FASTOCTREE).save(content, "png")
    return content.getvalue()


def show(fig: Figure, *, alt: str, caption: str, name: str, dpi: int = 150) -> None:
    """Show a figure once, as a PNG that carries its own alt text, caption and label.

    In the book it becomes a numbered figure that ``{numref}`` finds by ``name``, whose columns of panels stand below
    each other on a narrow screen, with a link to the numbers that it draws; in Jupyter and on GitHub the caption
    follows the picture.

    Parameters
    ----------
    fig
        The figure; closed afterwards.
    alt
        What the figure shows, with the measured finding, for those who do not see it.
    caption
        Markdown; numbers, no roles.
    name
        Label, such as ``fig-rank-flow``.
    dpi
        Resolution.

    Raises
    ------
    ValueError
        ``alt``, ``caption`` or ``name`` is empty, ``name`` is no label, or the figure has no axes, reaches from one
        column of panels into the next, or draws something whose numbers cannot be told.
    """
    for key, value in (("alt", alt), ("caption", caption), ("name", name)):
        if not value.strip():
            raise ValueError(f"{key}: must not be empty")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"name: must be small letters and digits, with hyphens between: {name!r}")
    if not fig.axes:
        raise ValueError("fig: has no axes")
    try:
        fig.set_dpi(dpi)
        fig.draw_without_rendering()
        box = fig.get_tightbbox().padded(mpl.rcParams["savefig.pad_inches"])
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png", dpi=dpi, transparent=True, bbox_inches=box, metadata={"Software": None})
        buffer.seek(0)
        meta = {
            "alt": alt,
            "caption": caption,
            "name": name,
            "width": round(fig.get_figwidth() * 100),
            "text": drawn.smallest_text(fig),
            "cuts": drawn.columns(fig, box.x0 * dpi, plt.imread(buffer)),
            # As text: a notebook's file would give each number a line of its own.
            "data": json.dumps(drawn.data(fig), separators=(",", ":"), ensure_ascii=False),
        }
    finally:
        plt.close(fig)
    picture = {"image/png": base64.b64encode(_small(buffer)).decode(), "text/plain": alt}
    display(picture, raw=True, metadata={"image/png": meta})
    display({"text/markdown": caption}, raw=True, metadata={"text/markdown": {"caption_of": name}})
