"""Figures that follow a slider: charts computed here, moved by a short script in the page."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any, Literal

import numpy as np
from IPython.display import display
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from implicitreg import checks
from implicitreg.figures.plots import COLOURS

Numbers = NDArray[np.float64]

# Sizes of a chart in its own units, about pixels: whole, the plane inside, and what is below it.
_WIDTH, _HEIGHT = 320, 200
_LEFT, _RIGHT, _TOP, _BELOW = 48, 312, 8, 36
_RUG = 7
# The height of a phase portrait, whose directions are alike: its plane is square, nearly.
_PORTRAIT = 296

# Where a direct label stands beside its point: shift in the chart's units, and the class of its text.
Side = Literal["left", "right", "above", "below"]
_SIDES = {"left": (-9, 4, "ir-left"), "right": (9, 4, "ir-right"), "above": (0, -8, ""), "below": (0, 16, "")}


@dataclass(frozen=True, eq=False)
class Curve:
    """One curve of a `Panel`, or one read-out: numbers given at values of the slider's variable.

    Parameters
    ----------
    label
        Its name in the legend.
    at
        Values of the slider's variable, shape ``(n,)``, ``n >= 2``, rising or falling; equal neighbours are a jump.
    y
        Shape ``(n,)``, straight lines between; or ``(n - 1,)``, constant between neighbours of ``at``: a step function.
    x
        Shape ``(n,)``: horizontal positions where these are not the slider's variable, as in a phase portrait.
    marks
        Values of the slider's variable that are marked below the curve, such as kinks, or on it where it has an ``x``;
        any shape, may be empty.
    colour
        Which of `COLOURS`; by default that of the curve's place in its panel.
    dashed
        Draw it dashed.
    named_at
        Value of the slider's variable at which the chart names the curve too, in its colour; by default the legend
        alone does.
    side
        On which side of that point: ``"left"``, ``"right"``, ``"above"`` or ``"below"``.
    """

    label: str
    at: ArrayLike
    y: ArrayLike
    x: ArrayLike | None = None
    marks: ArrayLike = ()
    colour: int | None = None
    dashed: bool = False
    named_at: float | None = None
    side: Side = "right"


@dataclass(frozen=True, eq=False)
class Still:
    """A line or a point of a `Panel` that does not follow the slider, named in the chart and not in the legend.

    Parameters
    ----------
    x, y
        Shape ``(n,)``: a thin line for ``n >= 2``, a point for ``n = 1``. The panel is made wide enough for them where
        its curves have an ``x``; else ``x`` are values of the slider's variable.
    label
        Its name in the chart; none where empty.
    named_at
        Index of the point of the line beside which the name stands; by default the last.
    side
        On which side of it: ``"left"``, ``"right"``, ``"above"`` or ``"below"``.
    colour
        Which of `COLOURS`; by default that of the page's text.
    dashed
        Draw the line dashed.
    """

    x: ArrayLike
    y: ArrayLike
    label: str = ""
    named_at: int = -1
    side: Side = "right"
    colour: int | None = None
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One chart of `explore`.

    Parameters
    ----------
    title
        What is drawn upward.
    curves
        At least one; either all or none with an ``x`` of their own.
    x_label
        What is drawn to the right; needed where the curves have an ``x``, else the slider's label.
    log
        Whether the vertical axis is logarithmic.
    stills
        Lines and points behind the curves that stay where they are.
    """

    title: str
    curves: Sequence[Curve]
    x_label: str | None = None
    log: bool = False
    stills: Sequence[Still] = ()


@dataclass(frozen=True, eq=False)
class Frames:
    """A small grey picture that changes with the slider: each pixel runs straight from frame to frame.

    Two frames at 0 and 1 are the blend ``(1 - t) first + t second``.

    Parameters
    ----------
    label
        What it shows.
    at
        Values of the slider's variable, shape ``(n,)``, ``n >= 2``, rising or falling.
    pixels
        Shape ``(n, height, width)``; the least value is black, the largest white.
    """

    label: str
    at: ArrayLike
    pixels: ArrayLike


def explore(
    panels: Sequence[Panel],
    *,
    name: str,
    label: str,
    symbol: str,
    stops: ArrayLike,
    alt: str,
    start: int = 0,
    log: bool = False,
    readouts: Sequence[Curve] = (),
    frames: Frames | None = None,
) -> None:
    """Show charts with a marker that a slider moves along their curves.

    The output is one piece of HTML: a native range input (mouse, touch and keys; its value and, after a pause, all
    numbers are announced to screen readers), line charts as SVG, and a short script that moves the markers, writes the
    numbers and paints the picture from data that is computed here. It needs no kernel, library or network, and takes
    its colours from the page. Without scripts one sentence stands in its place: put it below a figure of `show`.

    Parameters
    ----------
    panels
        The charts, at least one.
    name
        Prefix of the ids, unique on the page: small letters, digits and hyphens.
    label
        What the slider sets, such as ``"position along the segment"``.
    symbol
        Its symbol, such as ``"t"``.
    stops
        Values of the slider's variable that it can be set to, from left to right; shape ``(n,)``, ``n >= 2``, strictly
        rising or falling, in whose direction the axis of the charts then runs.
    alt
        What the figure shows, as a sentence: its name for screen readers, and the output where HTML is not shown.
    start
        Index of the stop at which it starts.
    log
        Whether the slider's variable has a logarithmic axis.
    readouts
        Numbers beside the slider that no chart draws.
    frames
        A picture that changes with the slider.

    Raises
    ------
    TypeError
        ``panels``, their ``curves`` or ``stills``, ``readouts`` or ``frames`` hold something else.
    ValueError
        A text is empty, an array has another shape or is not monotone or finite, an axis is logarithmic where a value
        is not positive, the curves of a panel do not agree on what is drawn to the right, a colour or side is unknown,
        or a curve is to be named where it is not drawn.

    Notes
    -----
    Data is rounded to 4 significant digits, so that the output is the same on every machine. Size: about 20 bytes for
    each point of a curve.

    Examples
    --------
    >>> curve = Curve("distance", at=[0, 1], y=[3, 0])
    >>> fall = [Panel("distance to the end", [curve])]
    >>> explore(fall, name="walk", label="time", symbol="t", stops=[0, 0.5, 1], alt="It falls.")  # doctest: +SKIP
    """
    checks.integer(start, "start", 0)
    for key, value in (("label", label), ("symbol", symbol), ("alt", alt)):
        _text(value, key)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise ValueError(f"name: must be small letters, digits and hyphens, beginning with a letter, got {name!r}")
    given = _rounded(_numbers(stops, "stops"))
    at = _rising(given, "stops", strict=True, positive=log)[0]
    if start >= len(at):
        raise ValueError(f"start: must be less than the number of stops, {len(at)}, got {start}")
    if not panels:
        raise ValueError("panels: must hold at least one panel")
    charts = []
    for i, panel in enumerate(panels):
        if not isinstance(panel, Panel):
            raise TypeError(f"panels[{i}]: must be a Panel, got {type(panel).__name__}")
        charts.append(_Chart(panel, f"panels[{i}]", label, (given[0], given[-1]), log))
    beside = [_curve(curve, f"readouts[{i}]", log=log) for i, curve in enumerate(readouts)]
    shown = None if frames is None else _frames(frames, log)
    numbers = "".join(f"<li>{escape(c['label'])}: <b></b></li>" for c in beside)
    data = {
        "symbol": symbol,
        "stops": given,
        "log": log,
        "plane": [_LEFT, _RIGHT, _TOP],
        "panels": [chart.data for chart in charts],
        "readouts": beside,
        "frames": shown,
    }
    style, script, fragment = (_part(kind) for kind in ("css", "js", "html"))
    html = fragment.format(
        style=style,
        name=name,
        alt=escape(alt),
        label=escape(label[:1].upper() + label[1:]),
        most=len(at) - 1,
        start=start,
        numbers=f'<ul class="ir-beside">{numbers}</ul>' if numbers else "",
        picture="" if shown is None else _picture(shown),
        charts="".join(chart.html for chart in charts),
        script=script,
        # No character that could end the script, whatever the labels are.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )
    display({"text/html": html, "text/plain": alt}, raw=True)


def _part(kind: str) -> str:
    """Return the style, script or skeleton that lies beside this module."""
    return resources.files("implicitreg.figures").joinpath(f"explorer.{kind}").read_text("utf-8").rstrip("\n")


def _text(value: str, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: must not be empty")
    return value


def _numbers(value: ArrayLike, name: str) -> Numbers:
    """Return finite numbers as an array."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: must be numbers, got {type(value).__name__}") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: must be finite, got NaN or infinity")
    return array


def _rising(value: ArrayLike, name: str, *, strict: bool = False, positive: bool = False) -> tuple[Numbers, bool]:
    """Return values of the slider's variable in rising order, and whether they had to be turned round."""
    at = _numbers(value, name)
    if at.ndim != 1 or len(at) < 2:
        raise ValueError(f"{name}: must have shape (n,) with n >= 2, got {at.shape}")
    turned = bool(at[0] > at[-1])
    at = at[::-1] if turned else at
    steps = np.diff(at)
    far = ", to 4 significant digits" if strict else ""
    if (steps <= 0).any() if strict else (steps < 0).any():
        raise ValueError(f"{name}: must be {'strictly ' if strict else ''}rising or falling{far}")
    _log(at, name, positive)
    return at, turned


def _log(values: Numbers, name: str, log: bool) -> None:
    if log and values.size and values.min() <= 0:
        raise ValueError(f"{name}: must be > 0 on a logarithmic axis")


def _rounded(values: Numbers) -> list[Any]:
    """Return numbers to 4 significant digits, whole ones as integers, for JSON."""
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    near = [float(f"{v:.4g}") for v in values.tolist()]
    return [int(v) if v.is_integer() and abs(v) < 1e15 else v for v in near]


def _curve(curve: Curve, name: str, *, log: bool) -> dict[str, Any]:
    """Return the data of one curve, its variable rising."""
    if not isinstance(curve, Curve):
        raise TypeError(f"{name}: must be a Curve, got {type(curve).__name__}")
    _text(curve.label, f"{name}.label")
    at, turned = _rising(curve.at, f"{name}.at", positive=log)
    y, x = _numbers(curve.y, f"{name}.y"), None
    step = y.shape == (len(at) - 1,)
    if y.shape != at.shape and not step:
        raise ValueError(f"{name}.y: must have shape ({len(at)},) or ({len(at) - 1},), got {y.shape}")
    if curve.x is not None:
        x = _numbers(curve.x, f"{name}.x")
        if step or x.shape != at.shape:
            raise ValueError(f"{name}.x: must have the shape of at and y, ({len(at)},), got {x.shape} and {y.shape}")
    _looks(curve, name)
    if curve.named_at is not None and not at[0] <= checks.number(curve.named_at) <= at[-1]:
        raise ValueError(f"{name}.named_at: must be from {at[0]:g} to {at[-1]:g}, got {curve.named_at!r}")
    order = slice(None, None, -1) if turned else slice(None)
    found = {"label": curve.label, "at": _rounded(at), "y": _rounded(y[order]), "step": step}
    return found if x is None else {**found, "x": _rounded(x[order])}


def _looks(item: Curve | Still, name: str) -> None:
    if item.colour is not None and checks.integer(item.colour, f"{name}.colour", 0) >= len(COLOURS):
        raise ValueError(f"{name}.colour: must be less than {len(COLOURS)}, got {item.colour}")
    if item.side not in _SIDES:
        raise ValueError(f"{name}.side: must be one of {', '.join(_SIDES)}, got {item.side!r}")


def _still(still: Still, name: str) -> tuple[Numbers, Numbers]:
    """Return the points of a line, or the one point."""
    if not isinstance(still, Still):
        raise TypeError(f"{name}: must be a Still, got {type(still).__name__}")
    _looks(still, name)
    x, y = (np.atleast_1d(_numbers(v, f"{name}.{key}")) for key, v in (("x", still.x), ("y", still.y)))
    if x.ndim != 1 or x.shape != y.shape or not x.size:
        raise ValueError(f"{name}: x and y must have one shape (n,) with n >= 1, got {x.shape} and {y.shape}")
    if still.named_at not in range(-len(x), len(x)):
        raise ValueError(f"{name}.named_at: must be an index of {len(x)} points, got {still.named_at!r}")
    return x, y


def _frames(frames: Frames, log: bool) -> dict[str, Any]:
    """Return the data of the picture: grey levels from 0 to 255."""
    if not isinstance(frames, Frames):
        raise TypeError(f"frames: must be Frames, got {type(frames).__name__}")
    _text(frames.label, "frames.label")
    at, turned = _rising(frames.at, "frames.at", strict=True, positive=log)
    pixels = _numbers(frames.pixels, "frames.pixels")
    if pixels.ndim != 3 or len(pixels) != len(at) or 0 in pixels.shape:
        raise ValueError(f"frames.pixels: must have shape ({len(at)}, height, width), got {pixels.shape}")
    grey = (pixels - pixels.min()) / (np.ptp(pixels) or 1.0) * 255
    if turned:
        grey = grey[::-1]
    size = list(pixels.shape[1:])
    return {"label": frames.label, "at": _rounded(at), "size": size, "grey": _rounded(grey.reshape(len(at), -1))}


def _picture(frames: dict[str, Any]) -> str:
    height, width = frames["size"]
    label = escape(frames["label"])
    return (
        f'<div class="ir-picture"><canvas width="{width}" height="{height}" role="img" aria-label="{label}"></canvas>'
        f"<span>{label}</span></div>"
    )


class _Axis:
    """Where a value stands on an axis from ``low`` to ``high`` (or falling), drawn from ``first`` to ``last``."""

    def __init__(self, low: float, high: float, log: bool, first: float, last: float):
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
        self.low, self.high, self.log, self.first, self.last = low, high, log, first, last

    def place(self, values: ArrayLike) -> Numbers:
        """Return positions in the chart's units."""
        v, low, high = (
            np.log(np.asarray(e, float)) if self.log else np.asarray(e, float) for e in (values, self.low, self.high)
        )
        return np.asarray(self.first + (v - low) / (high - low) * (self.last - self.first))

    def ticks(self) -> list[tuple[float, str]]:
        """Return at most six ticks: value and text."""
        low, high = sorted((self.low, self.high))
        if self.log:
            first, last = int(np.ceil(np.log10(low) - 1e-9)), int(np.floor(np.log10(high) + 1e-9))
            if last > first:
                every = -(-(last - first) // 5)
                raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
                return [(10.0**k, f"10{str(k).translate(raised)}") for k in range(first, last + 1, every)]
        found = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        slack = 1e-9 * (high - low)
        inside = [v for v in found if low - slack <= v <= high + slack and (v > 0 or not self.log)]
        return [(v, f"{v:.4g}".replace("-", "−")) for v in inside]

    def data(self) -> list[Any]:
        """Return what the script needs."""
        return [*_rounded(np.array([self.low, self.high])), self.log]


class _Chart:
    """One panel as HTML and as data for the script."""

    def __init__(self, panel: Panel, name: str, label: str, span: tuple[float, float], log: bool):
        _text(panel.title, f"{name}.title")
        if not panel.curves:
            raise ValueError(f"{name}.curves: must hold at least one curve")
        curves = [_curve(c, f"{name}.curves[{i}]", log=log) for i, c in enumerate(panel.curves)]
        portrait = "x" in curves[0]
        if any(("x" in c) != portrait for c in curves):
            raise ValueError(f"{name}.curves: either all or none must have an x of their own")
        if portrait and panel.x_label is None:
            raise ValueError(f"{name}.x_label: must name what the curves' x is")
        right = label if panel.x_label is None else _text(panel.x_label, f"{name}.x_label")
        stills = [_still(s, f"{name}.stills[{i}]") for i, s in enumerate(panel.stills)]
        y = np.concatenate([c["y"] for c in curves] + [s[1] for s in stills])
        _log(y, f"{name}: y", panel.log)
        for i, (x, _) in enumerate(stills):
            _log(x, f"{name}.stills[{i}].x", log and not portrait)
        across = np.concatenate([c["x"] for c in curves] + [s[0] for s in stills]) if portrait else None
        left, right_end = span if across is None else (across.min(), across.max())
        marks = [_numbers(c.marks, f"{name}.curves[{i}].marks").ravel() for i, c in enumerate(panel.curves)]
        rugs = 0 if portrait else sum(m.size > 0 for m in marks)
        pad = 4 if portrait else 0
        self.x = _Axis(left, right_end, log and not portrait, _LEFT + pad, _RIGHT - pad)
        self.height = _PORTRAIT if portrait else _HEIGHT
        self.bottom = self.height - _BELOW
        self.y = _Axis(y.min(), y.max(), panel.log, self.bottom - 4 - _RUG * rugs, _TOP + 4)
        self.html = self._drawn(panel, right, curves, marks, stills)
        self.data = {"x": self.x.data(), "y": self.y.data(), "low": self.y.first, "pad": pad, "curves": curves}

    def _placed(self, x: ArrayLike, y: ArrayLike) -> list[tuple[float, float]]:
        """Return points in the chart's units."""
        return list(zip(self.x.place(x).tolist(), self.y.place(y).tolist(), strict=True))

    def _line(self, x: ArrayLike, y: ArrayLike, looks: str) -> str:
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in self._placed(x, y))
        return f'<polyline points="{points}" {looks}/>'

    def _name(self, label: str, at: Sequence[ArrayLike], side: Side, colour: str) -> str:
        """Return the label of the one point whose coordinates are given."""
        ((a, b),) = self._placed(*at)
        right, down, anchor = _SIDES[side]
        place = f'x="{a + right:.1f}" y="{b + down:.1f}"'
        return f'<text {place} class="{anchor}" style="fill:{colour}">{escape(label)}</text>'

    def _drawn(
        self,
        panel: Panel,
        right: str,
        curves: list[dict[str, Any]],
        marks: list[Numbers],
        stills: list[tuple[Numbers, Numbers]],
    ) -> str:
        """Return the chart and its legend."""
        lines, points, names, dots, legend, rug = [], [], [], [], [], 0
        for still, (x, y) in zip(panel.stills, stills, strict=True):
            colour = "currentColor" if still.colour is None else COLOURS[still.colour]
            if len(x) > 1:
                dash = ' stroke-dasharray="4 3"' if still.dashed else ""
                lines.append(self._line(x, y, f'class="ir-still" stroke="{colour}"{dash}'))
            else:
                ((a, b),) = self._placed(x, y)
                points.append(f'<path class="ir-spot" d="M{a:.1f} {b:.1f}h0" stroke="{colour}"/>')
            if still.label:
                there = [v[[still.named_at]] for v in (x, y)]
                names.append(self._name(still.label, there, still.side, colour))
        for i, (curve, given, strokes) in enumerate(zip(curves, panel.curves, marks, strict=True)):
            colour = COLOURS[i % len(COLOURS) if given.colour is None else given.colour]
            dash = ' stroke-dasharray="6 4"' if given.dashed else ""
            x, y = np.array(curve.get("x", curve["at"])), np.array(curve["y"])
            if curve["step"]:
                x, y = np.repeat(x, 2)[1:-1], np.repeat(y, 2)
            lines.append(self._line(x, y, f'stroke="{colour}"{dash}'))
            if given.named_at is not None:
                along = np.repeat(curve["at"], 2)[1:-1] if curve["step"] else curve["at"]
                there = [np.interp([given.named_at], along, v) for v in (x, y)]
                names.append(self._name(curve["label"], there, given.side, colour))
            if strokes.size:
                inside = strokes[(strokes >= curve["at"][0]) & (strokes <= curve["at"][-1])]
                if "x" in curve:
                    at = [np.interp(inside, curve["at"], curve[key]) for key in ("x", "y")]
                    path, kind = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in self._placed(*at)), "ir-beads"
                else:
                    top = self.bottom - 1 - _RUG * (rug + 1)
                    path, kind = "".join(f"M{a:.1f} {top}v{_RUG - 2}" for a in self.x.place(inside)), "ir-rug"
                    rug += 1
                lines.append(f'<path class="{kind}" d="{path}" stroke="{colour}"/>')
            dots.append(f'<circle r="4" fill="{colour}"/>')
            key = f'<svg viewBox="0 0 22 8" aria-hidden="true"><path d="M0 4h22" stroke="{colour}"{dash}/></svg>'
            legend.append(f"<li>{key} {escape(curve['label'])}: <b></b></li>")
        ticks = []
        for value, text in self.x.ticks():
            across = float(self.x.place(value))
            # A letter is some six wide: the last number ends where the chart does.
            middle = min(across, _WIDTH - 3 * len(text))
            ticks.append(
                f'<path d="M{across:.1f} {self.bottom}v4"/><text x="{middle:.1f}" y="{self.bottom + 16}">{text}</text>'
            )
        for value, text in self.y.ticks():
            up = float(self.y.place(value))
            ticks.append(
                f'<path d="M{_LEFT} {up:.1f}h-4"/><text x="{_LEFT - 7}" y="{up + 4:.1f}" class="ir-left">{text}</text>'
            )
        follow = "" if "x" in curves[0] else f'<path class="ir-at" d="M0 {_TOP}V{self.bottom}"/>'
        return (
            f'<div class="ir-chart"><div class="ir-title">{escape(panel.title)}</div>'
            f'<svg viewBox="0 0 {_WIDTH} {self.height}" aria-hidden="true">'
            f'<g class="ir-axes"><path d="M{_LEFT} {_TOP}V{self.bottom}H{_RIGHT}"/>{"".join(ticks)}'
            f'<text x="{(_LEFT + _RIGHT) / 2:g}" y="{self.height - 4}">{escape(right)}</text></g>'
            f'<g class="ir-lines">{"".join(lines + points)}</g>{follow}<g class="ir-dots">{"".join(dots)}</g>'
            f'<g class="ir-names">{"".join(names)}</g></svg>'
            f"<ul>{''.join(legend)}</ul></div>"
        )
