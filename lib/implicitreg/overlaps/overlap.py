"""Two data sets that a start tells apart, and how to show that they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from implicitreg import checks
from implicitreg.dynamics import gradient_flow, squared_loss
from implicitreg.nets import Activation, hidden_neuron
from implicitreg.overlaps.elasticity import applied

Sample = tuple[float, float]


class InfeasibleError(ValueError):
    """A recipe has no solution for these numbers, though it has for others: the message says which ones to change."""


@dataclass(frozen=True, eq=False)
class Overlap:
    r"""Two data sets that a start tells apart, though their solutions do not.

    *Two-point*: both points, p and q, have zero loss on both data sets; gradient flow from the start leads to q on the
    first and to p on the second. *One-point*: p equals q, gradient flow leads there on both, and the curves of zero
    loss cross.

    Attributes
    ----------
    activation
        The activation of the hidden neuron.
    theta_0
        The start, (a, w), shape ``(2,)``, float64.
    p, q
        The points, shape ``(2,)``, float64.
    s1, s2
        The data sets, one sample (x, y) each.

    Raises
    ------
    TypeError
        ``activation`` is no function of a tensor that automatic differentiation follows.
    ValueError
        A point or a sample is not two finite numbers, or the activation does not map entry by entry.
    """

    activation: Activation
    theta_0: Tensor
    p: Tensor
    q: Tensor
    s1: Sample
    s2: Sample

    def __post_init__(self) -> None:
        for name in ("theta_0", "p", "q"):
            object.__setattr__(self, name, point(getattr(self, name), name))
        for name in ("s1", "s2"):
            sample = getattr(self, name)
            if (
                not isinstance(sample, Sequence)
                or len(sample) != 2
                or not all(map(math.isfinite, map(checks.number, sample)))
            ):
                raise ValueError(f"{name}: must be two finite numbers (x, y), got {sample!r}")
            object.__setattr__(self, name, (float(sample[0]), float(sample[1])))
        applied(self.activation, self.p[1] * self.x)

    @property
    def one_point(self) -> bool:
        """Whether p and q are one point."""
        return torch.equal(self.p, self.q)

    @property
    def x(self) -> Tensor:
        """The two inputs, of shape ``(2, 1, 1)``, by data set, sample and input."""
        return torch.tensor([self.s1[0], self.s2[0]], dtype=torch.float64)[:, None, None]

    @property
    def y(self) -> Tensor:
        """The two targets, of shape ``(2, 1)``, by data set and sample."""
        return torch.tensor([self.s1[1], self.s2[1]], dtype=torch.float64)[:, None]

    def loss(self, theta: Tensor) -> Tensor:
        r"""Return the loss :math:`\frac12 (f(x) - y)^2` on both data sets, ``(..., 2)``, for points ``(..., 2, 2)``.

        The last but one dimension of ``theta`` is the data set: the same point for both is ``theta[..., None, :]``.
        """
        return squared_loss(hidden_neuron(theta, self.x, self.activation), self.y)

    def verify(self, *, rtol: float = 1e-12, atol: float = 1e-14) -> "Verification":
        """Return what shows that this is an overlap: see `verify`."""
        return verify([self], rtol=rtol, atol=atol)[0]


@dataclass(frozen=True, eq=False)
class Verification:
    r"""What was found when the flows of an `Overlap` were run.

    Attributes
    ----------
    residuals
        :math:`f(x_i; \theta) - y_i`, shape ``(2, 2)``: data set, then p and q.
    ends
        Where gradient flow from the start ends on the first and on the second data set, shape ``(2, 2)``.
    errors
        Distance of the first end from q and of the second from p, shape ``(2,)``.
    converged
        Whether the flows reached zero loss, shape ``(2,)``.
    determinants
        :math:`\det[\nabla_\theta f(x_1), \nabla_\theta f(x_2)]` at p and at q, shape ``(2,)``; not 0 where the two
        curves of zero loss cross (are transversal).
    sines
        Sine of the angle at which they cross, at p and at q, shape ``(2,)``.
    size
        The largest of 1 and the norms of start, p and q, to which the solver's tolerance is relative.
    """

    residuals: Tensor
    ends: Tensor
    errors: Tensor
    converged: Tensor
    determinants: Tensor
    sines: Tensor
    size: float

    def holds(self, tolerance: float = 1e-7) -> bool:
        """Tell whether the flows converged, and residuals and errors are at most ``tolerance`` times `size`."""
        largest = torch.cat([self.residuals.abs().flatten(), self.errors]).max()
        return bool(self.converged.all() and largest <= checks.positive(tolerance, "tolerance") * self.size)


def verify(overlaps: Sequence[Overlap], *, rtol: float = 1e-12, atol: float = 1e-14) -> list[Verification]:
    """Run both flows of every overlap, all as one system, and measure what an overlap must show.

    Parameters
    ----------
    overlaps
        At least one, all with the same activation.
    rtol, atol
        Tolerances of `gradient_flow`.

    Returns
    -------
    list of Verification
        In order. Cost: one system of 4 equations for each overlap.

    Raises
    ------
    TypeError
        Not a sequence of overlaps.
    ValueError
        No overlap, or different activations.

    Warns
    -----
    RuntimeWarning
        A flow did not converge.

    Examples
    --------
    >>> from implicitreg.overlaps import one_point_overlap
    >>> (found,) = verify([one_point_overlap(torch.sigmoid, (1, 0), 1, math.e)])
    >>> found.holds(1e-9), round(found.determinants[0].item(), 6)
    (True, -0.273799)
    """
    if isinstance(overlaps, Overlap) or not all(isinstance(o, Overlap) for o in overlaps):
        raise TypeError("overlaps: must be a sequence of Overlap")
    if not overlaps or any(o.activation is not overlaps[0].activation for o in overlaps):
        raise ValueError("overlaps: must be at least one, all with the same activation")
    activation = overlaps[0].activation
    x, y = torch.stack([o.x for o in overlaps]), torch.stack([o.y for o in overlaps])
    start = torch.stack([o.theta_0 for o in overlaps])[:, None].expand(-1, 2, -1)
    points = torch.stack([torch.stack([o.p, o.q]) for o in overlaps])
    # Every point at both inputs: (overlap, point, data set).
    theta = points[:, :, None].expand(-1, -1, 2, -1).clone().requires_grad_()
    with torch.enable_grad():
        outputs = hidden_neuron(theta, x[:, None], activation)[..., 0]
        (gradients,) = torch.autograd.grad(outputs.sum(), theta)
    # A constant factor changes the flow's time and nothing else: with this one all members approach their ends alike.
    rate = gradients.square().sum(-1)[:, (1, 0), (0, 1)].clamp_min(1e-300)
    flow = gradient_flow(
        lambda theta: squared_loss(hidden_neuron(theta, x, activation), y) / rate,
        start,
        until=1e-26 * y.square().sum(-1).clamp_min(1e-300) / rate,
        rtol=rtol,
        atol=atol,
    )
    residuals = (outputs.detach() - y[:, None, :, 0]).mT
    determinants = torch.linalg.det(gradients)
    sines = determinants.abs() / gradients.norm(dim=-1).prod(-1)
    errors = (flow.end - points.flip(1)).norm(dim=-1)
    sizes = torch.cat([points, start[:, :1]], 1).norm(dim=-1).amax(1).clamp_min(1).tolist()
    parts = (residuals, flow.end, errors, flow.converged, determinants, sines, sizes)
    return [Verification(*found) for found in zip(*parts, strict=True)]


def sigma_at(activation: Activation, z: float) -> float:
    """Return the activation of one number."""
    return float(applied(activation, torch.tensor([z], dtype=torch.float64))[0])


def point(value: Tensor | Sequence[float], name: str) -> Tensor:
    """Return a point (a, w) as a float64 tensor of its own."""
    try:
        point = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}: must be two finite numbers (a, w), got {value!r}") from None
    if point.shape != (2,) or not torch.isfinite(point).all():
        raise ValueError(f"{name}: must be two finite numbers (a, w), got {value!r}")
    return point
