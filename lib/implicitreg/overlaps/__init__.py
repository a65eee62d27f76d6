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

Examples
--------
The whole chain for an activation of one's own, whose elasticity :math:`2z / (1 + e^z)` turns: two data sets, the flows
that show them to be an overlap, the choices that these reveal, and a cycle, so that no function explains the choices.

>>> import torch
>>> def squared_sigmoid(z):
...     return torch.sigmoid(z) ** 2
>>> elasticity_trend(squared_sigmoid)
'non-monotone'
>>> overlap = two_point_overlap(squared_sigmoid, w_p=2, w_q=1, w_0=3)
>>> found = overlap.verify()
>>> found.holds()
True
>>> points = torch.stack([overlap.p, overlap.q])
>>> graph = preference_graph(found.ends, points, overlap.loss(points[:, None, :]).T)
>>> graph.edges  # (chosen, rejected, data set): q over p on the first, p over q on the second
((1, 0, 0), (0, 1, 1))
>>> answer = rationalizable(graph)
>>> bool(answer), answer.cycle, answer.verify()
(False, (0, 1, 0), True)
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
