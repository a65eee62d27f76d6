r"""Pairs of data sets on which gradient flow contradicts every function that does not know the data.

The model is a network with one hidden neuron and one input, :math:`f(x; a, w) = a\,\sigma(wx)`, with parameters
:math:`\theta = (a, w)`. A data set is one sample :math:`(x, y)`, the loss is :math:`\frac12 (f(x) - y)^2`, and
:math:`M_S` is the curve of zero loss. With :math:`x, w, a, \sigma, \sigma' > 0` three functions decide everything:

- the *elasticity* :math:`e(z) = z\,\sigma'(z) / \sigma(z)`;
- the *path integral* :math:`H_x(w_0, w) = \int_{w_0}^w \frac{u\,du}{e(ux)}`: gradient flow on a sample with input x
  keeps :math:`a^2/2 - H_x(w_0, w)`, and the target only tells it where to stop;
- the *ratio* :math:`g(x) = \sigma(w_p x) / \sigma(w_q x)`: points p and q have zero loss on samples with inputs
  :math:`x_1, x_2` if :math:`g(x_1) = g(x_2) = a_q / a_p`.

Where the elasticity is monotone, so are :math:`g` and :math:`H_x` as functions of :math:`x`, and no data sets collide.
Where it is not, the recipes below find data sets that do.
"""

from implicitreg.overlaps.bespoke import bespoke_one_point, bespoke_two_point
from implicitreg.overlaps.elasticity import (
    elasticity,
    elasticity_trend,
    path_integral,
    path_invariant,
    solution_ratio,
)
from implicitreg.overlaps.overlap import InfeasibleError, Overlap, Verification, verify
from implicitreg.overlaps.preferences import PreferenceGraph, Rationalization, preference_graph, rationalizable
from implicitreg.overlaps.standard import one_point_overlap, two_point_overlap
from implicitreg.overlaps.traced import traced_preference

__all__ = [
    "InfeasibleError",
    "Overlap",
    "PreferenceGraph",
    "Rationalization",
    "Verification",
    "bespoke_one_point",
    "bespoke_two_point",
    "elasticity",
    "elasticity_trend",
    "one_point_overlap",
    "path_integral",
    "path_invariant",
    "preference_graph",
    "rationalizable",
    "solution_ratio",
    "traced_preference",
    "two_point_overlap",
    "verify",
]
