"""How results look: one style for every figure, one way to show it, and figures that follow a slider."""

from implicitreg.figures.explorer import Curve, Frames, Panel, Still, explore
from implicitreg.figures.plots import COLOURS, INK, bound, published, show, style

__all__ = ["COLOURS", "INK", "Curve", "Frames", "Panel", "Still", "bound", "explore", "published", "show", "style"]
