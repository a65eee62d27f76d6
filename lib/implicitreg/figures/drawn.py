"""What a figure shows: its columns of panels, its smallest text, and the numbers behind its lines, bands and points."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import (
    Collection,
    FillBetweenPolyCollection,
    LineCollection,
    PathCollection,
    QuadMesh,
)
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch
from matplotlib.text import Text
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]

DIGITS = 6
"""Significant digits of the numbers that are kept."""


class Series(NamedTuple):
    """One thing that a panel draws: its label if it has one, its colour, what it is, and where it lies."""

    label: str
    colour: tuple[float, ...] | None
    kind: str
    points: dict[str, Numbers]


def smallest_text(fig: Figure) -> float:
    """Return the size of the smallest text of a figure, in points."""
    texts = (t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip())
    return min(round(float(t.get_fontsize()), 2) for t in texts)


def columns(fig: Figure, left: float, picture: NDArray[Any]) -> list[int]:
    """Return where a picture of a figure is cut into its columns of panels.

    Parameters
    ----------
    fig
        The figure, as drawn.
    left
        Where the picture begins in the figure, in pixels.
    picture
        Its pixels, shape ``(height, width, 4)``; the last entry is the opacity.

    Returns
    -------
    list of int
        Pixels between columns, from left to right; none where there is one column.

    Raises
    ------
    ValueError
        Something reaches from one column of panels into the next.
    """
    empty: NDArray[np.bool_] = np.logical_not(picture[..., 3].any(axis=0))
    groups: list[list[Axes]] = []
    end = -np.inf
    for ax in sorted((ax for ax in fig.axes if ax.get_visible()), key=lambda ax: ax.get_position().x0):
        if ax.get_position().x0 > end:
            groups.append([])
        groups[-1].append(ax)
        end = max(end, ax.get_position().x1)
    # What belongs to each column: its axes with their labels.
    spans = [[box for box in (ax.get_tightbbox() for ax in group) if box is not None] for group in groups]
    cuts: list[int] = []
    for before, after in pairwise(spans):
        # Two pixels for lines that are wider than their boxes.
        first = math.ceil(max(box.x1 for box in before) - left) + 2
        last = math.floor(min(box.x0 for box in after) - left) - 2
        if last <= first or not empty[first:last].all():
            raise ValueError("fig: something reaches from one column of panels into the next; give each its own labels")
        while first > 0 and empty[first - 1]:
            first -= 1
        while last < len(empty) and empty[last]:
            last += 1
        cuts.append((first + last) // 2)
    return cuts


def data(fig: Figure) -> list[dict[str, Any]]:
    """Return the numbers that a figure draws, one entry a line, band, cloud of points, bar or level.

    Inset axes and what has no numbers of its own (texts, arrows, filled areas) are left out.

    Returns
    -------
    list of dict
        Each with ``panel``, ``series``, ``kind``, ``x_label``, ``y_label`` and lists of equal length: ``x``, ``y``,
        and ``x_to``, ``y_to`` where the thing has a far end. Numbers have six digits; ``None`` is what is not finite.

    Raises
    ------
    ValueError
        The figure draws something whose numbers are not known here: other than lines, points, bands, error bars, bars,
        steps, segments and contours over plain numbers.
    """
    found = []
    for place, ax in enumerate(fig.axes, start=1):
        if ax.name != "rectilinear" or any(axis.have_units() for axis in (ax.xaxis, ax.yaxis)):
            raise ValueError("fig: only axes of plain numbers can be shown with their data")
        panel = ax.get_title("left") or ax.get_title() or ax.get_title("right") or ax.get_ylabel() or f"panel {place}"
        series = list(_series(ax))
        for name, drawn in zip(_names(ax, series), series, strict=True):
            labels = {"x_label": ax.get_xlabel(), "y_label": ax.get_ylabel()}
            points = {key: _rounded(values) for key, values in drawn.points.items()}
            found.append({"panel": panel, "series": name, "kind": drawn.kind, **labels, **points})
    return found


def _rounded(values: Numbers) -> list[float | None]:
    return [float(f"{v:.{DIGITS}g}") if np.isfinite(v) else None for v in values.tolist()]


def _names(ax: Axes, series: list[Series]) -> list[str]:
    """Name each series: by its label, else by the one text of its colour, else by its kind; number what repeats."""
    texts: dict[tuple[float, ...] | None, list[str]] = {}
    for text in filter(Text.get_text, ax.texts):
        texts.setdefault(to_rgb(text.get_color()), []).append(text.get_text())
    names = []
    for s in series:
        of_colour = texts.get(s.colour, [])
        names.append(s.label or (of_colour[0] if len(of_colour) == 1 else s.kind))
    keys = [(name, s.kind) for name, s in zip(names, series, strict=True)]
    return [f"{key[0]} {keys[: i + 1].count(key)}" if keys.count(key) > 1 else key[0] for i, key in enumerate(keys)]


def _array(values: ArrayLike) -> Numbers:
    """Return numbers as a flat array, with ``nan`` for what is masked."""
    return np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan).reshape(-1)


def _label(artist: Any) -> str:
    """Return the label of an artist or container that somebody gave it; matplotlib's own begin with an underscore."""
    label = str(getattr(artist, "get_gid", str)() or artist.get_label() or "")
    return "" if label.startswith("_") else label


def _series(ax: Axes) -> Iterator[Series]:
    """Yield what the axes draw in data coordinates, in the order of drawing."""
    bars = [c for c in ax.containers if isinstance(c, ErrorbarContainer)]
    caps = {id(cap) for bar in bars for cap in bar.lines[1]}
    of_bars = {id(part): _label(bar) for bar in bars for part in (bar.lines[0], *bar.lines[2])}
    for container in ax.containers:
        if isinstance(container, BarContainer):
            boxes = np.array([bar.get_bbox().extents for bar in container.patches]).reshape(-1, 4)
            corners = dict(zip(("x", "y", "x_to", "y_to"), (_array(v) for v in boxes.T), strict=True))
            yield Series(_label(container), None, "bar", corners)
    for artist in ax.get_children():
        if not artist.get_visible() or id(artist) in caps:
            continue
        if isinstance(artist, Line2D):
            yield from _line(ax, artist, of_bars.get(id(artist)) or _label(artist))
        elif isinstance(artist, Collection):
            yield from _collection(artist, of_bars.get(id(artist)) or _label(artist), id(artist) in of_bars)
        elif isinstance(artist, (AxesImage, QuadMesh)):
            raise ValueError(f"fig: the data of {type(artist).__name__} are not known")
        elif isinstance(artist, StepPatch):
            values, edges, _ = artist.get_data()
            points = {"x": _array(edges[:-1]), "y": _array(values), "x_to": _array(edges[1:])}
            yield Series(_label(artist), to_rgb(artist.get_edgecolor()), "steps", points)


def _line(ax: Axes, line: Line2D, label: str) -> Iterator[Series]:
    """Yield a line, its points where it has no line, or the one number of a line across the panel."""
    horizontal, vertical = line.get_transform().contains_branch_seperately(ax.transData)
    x, y = _array(line.get_xdata(orig=False)), _array(line.get_ydata(orig=False))
    if not len(x):
        return
    of = label, to_rgb(line.get_color())
    if horizontal and vertical:
        bare = str(line.get_linestyle()).lower() in ("none", "", " ")
        yield Series(*of, "points" if bare else "line", {"x": x, "y": y})
    elif vertical:
        yield Series(*of, "level", {"x": _array(np.nan), "y": y[:1]})
    elif horizontal:
        yield Series(*of, "position", {"x": x[:1], "y": _array(np.nan)})


def _collection(artist: Collection, label: str, error: bool) -> Iterator[Series]:
    """Yield contours, segments, error bars, points or bands."""
    colours: list[Any] = [c for c in (artist.get_facecolor(), artist.get_edgecolor()) if np.size(c)]
    colour = to_rgb(colours[0][0]) if colours else None
    if isinstance(artist, ContourSet):
        gap = np.full((1, 2), np.nan)
        for level, pieces in zip(artist.levels, artist.allsegs, strict=False):
            parts = [np.concatenate([p, gap]) for p in pieces if len(p)]
            if parts:
                x, y = np.concatenate(parts)[:-1].T
                yield Series(f"level {level:.4g}", None, "contour", {"x": _array(x), "y": _array(y)})
    elif isinstance(artist, LineCollection):
        ends = np.array([[s[0], s[-1]] for s in artist.get_segments() if len(s)]).reshape(-1, 2, 2)
        keys = ("x", "y", "x_to", "y_to")
        points = dict(zip(keys, (_array(v) for v in ends.reshape(-1, 4).T), strict=True))
        yield Series(label, colour, "error bar" if error else "segment", points)
    elif isinstance(artist, PathCollection):
        x, y = np.ma.filled(np.ma.asarray(artist.get_offsets(), dtype=np.float64), np.nan).T
        yield Series(label, colour, "points", {"x": _array(x), "y": _array(y)})
    elif not isinstance(artist, FillBetweenPolyCollection) or getattr(artist, "t_direction", None) != "x":
        raise ValueError(f"fig: the data of {type(artist).__name__} are not known")
    else:
        for path in artist.get_paths():
            at = np.asarray(path.vertices, dtype=np.float64)
            x = np.unique(at[:, 0])
            heights = [at[at[:, 0] == value, 1] for value in x]
            low, high = _array([h.min() for h in heights]), _array([h.max() for h in heights])
            yield Series(label, colour, "band", {"x": x, "y": low, "y_to": high})
