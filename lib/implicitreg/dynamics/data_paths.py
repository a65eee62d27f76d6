"""Scales of the weights in the geometry of the path norm, with or without the data: what Path-SGD divides by."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from implicitreg import checks
from implicitreg.nets import layers as ly

Rule = Literal["recursion", "mix"]


def data_share(alpha: float, rule: Rule | None) -> tuple[float, Rule]:
    """Return ``alpha`` as a float and the rule, if they are allowed together.

    Raises
    ------
    ValueError
        ``alpha`` is no number in [0, 1], ``rule`` is unknown, or the recursion is asked for at ``alpha=1``.
    """
    alpha = checks.share(alpha, "alpha")
    if rule is None:
        return alpha, "recursion" if alpha < 1 else "mix"
    if rule not in ("recursion", "mix"):
        raise ValueError(f"rule: must be 'recursion' or 'mix', got {rule!r}")
    if alpha == 1 and rule == "recursion":
        raise ValueError(
            "alpha: the recursion degenerates at 1, where every scale below the last layer is 0; use rule='mix', "
            "which is the diagonal Fisher information there"
        )
    return alpha, rule


def path_factors(
    weights: Sequence[Tensor],
    hidden: Sequence[Tensor] | None = None,
    alpha: float = 0.0,
    *,
    biases: Sequence[Tensor | None] | None = None,
    p: float = 2.0,
) -> list[tuple[Tensor, Tensor]]:
    r"""Return the scales of a ReLU network by the recursion of data-dependent paths, as outer products.

    .. math::

        \kappa_{u \to v} = \big(\alpha\,\mathbb E[h_u^2] + (1-\alpha)\,\gamma_u^2\big)\, s_v, \qquad
        \gamma_v^2 = \alpha\,\mathbb E[z_v^2] + (1-\alpha) \sum_u \gamma_u^2 w_{u \to v}^2, \qquad
        s_u = (1-\alpha) \sum_v w_{u \to v}^2 s_v,

    with :math:`\gamma = 1` at the inputs and :math:`s = 1` at the outputs; expectations are means over the data,
    which count as constant. The scale of a bias is :math:`s_v`. At :math:`\alpha = 0` these are the scales of
    Path-SGD, and no data are needed.

    Parameters
    ----------
    weights
        Matrices of shapes ``(..., h_i, h_{i-1})``; leading dimensions are networks.
    hidden
        What each layer takes in, ``[x, h_1, ...]``, shapes ``(..., n, h_{i-1})``; needed where ``alpha > 0``.
    alpha
        Share of the data, in [0, 1).
    biases
        One of shape ``(..., h_i)``, or None, for every layer; without biases when omitted.
    p
        Exponent of the path norm; other than 2 only where ``alpha = 0``:
        :math:`\kappa_e = (\sum_{\text{paths} \ni e} \prod_{e' \ne e} |w_{e'}|^p)^{2/p}`.

    Returns
    -------
    list of (Tensor, Tensor)
        For each layer :math:`s_v`, shape ``(..., h_i)``, and the first factor, shape ``(..., h_{i-1})``: κ is
        their outer product.

    Raises
    ------
    ValueError
        ``alpha`` is out of range, or data are missing.

    Notes
    -----
    Cost: three passes over the weights, and one forward pass over the data where ``alpha > 0``. Not
    differentiable. Arguments are trusted: this runs at every step. Source: Neyshabur et al. 2016, Data-Dependent
    Path Normalization (the mix of the two is recalled; its invariance is checked here).

    Examples
    --------
    >>> w = [torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.tensor([[2.0, -1.0]])]
    >>> path_factors(w)
    [(tensor([4., 1.]), tensor([1., 1.])), (tensor([1.]), tensor([5., 9.]))]
    """
    alpha, _ = data_share(alpha, "recursion")
    if alpha and (hidden is None or len(hidden) != len(weights)):
        raise ValueError("hidden: must hold what each of the layers takes in where alpha > 0")
    if alpha and p != 2:
        raise ValueError(f"p: must be 2 where alpha > 0, got {p!r}")
    with torch.no_grad():
        powers = [w.square() if p == 2 else w.abs().pow(p) for w in weights]
        first, last = powers[0], powers[-1]
        lead = first.shape[:-2]
        gamma = first.new_ones((*lead, first.shape[-1]))
        inner = []
        for i, power in enumerate(powers):
            data = hidden[i] if alpha and hidden is not None else None
            bias = biases[i] if biases is not None else None
            inner.append(gamma if data is None else (1 - alpha) * gamma + alpha * data.square().mean(-2))
            if i + 1 == len(powers):
                break
            gamma = _applied(power, gamma)
            if bias is not None:
                gamma = gamma + (bias.square() if p == 2 else bias.abs().pow(p))
            if data is not None:
                z = data @ weights[i].mT if bias is None else data @ weights[i].mT + bias[..., None, :]
                gamma = (1 - alpha) * gamma + alpha * z.square().mean(-2)
        slope = last.new_ones((*lead, last.shape[-2]))
        outer = [slope]
        for power in reversed(powers[1:]):
            slope = _applied(power.mT, slope)
            if alpha:
                slope = (1 - alpha) * slope
            outer.append(slope)
        outer.reverse()
        if p != 2:
            outer, inner = ([v.pow(2 / p) for v in factors] for factors in (outer, inner))
    return list(zip(outer, inner, strict=True))


def _applied(matrix: Tensor, vector: Tensor) -> Tensor:
    # A single matrix times a vector takes half the time of the same as matrices.
    return matrix @ vector if matrix.ndim == 2 else (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def fisher_scales(
    weights: Sequence[Tensor], hidden: Sequence[Tensor], *, biases: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    r"""Return the diagonal of the Fisher information of :math:`y \sim \mathcal N(f_w(x), I)` of a ReLU network.

    .. math:: \kappa_{u \to v} = \mathbb E\Big[h_u^2 \sum_o \Big(\frac{\partial z_o}{\partial z_v}\Big)^2\Big]
              = \mathbb E \sum_o \Big(\frac{\partial f_o}{\partial w_{u \to v}}\Big)^2.

    Parameters
    ----------
    weights
        Matrices of shapes ``(..., h_i, h_{i-1})``.
    hidden
        What each layer takes in, ``[x, h_1, ...]``, shapes ``(..., n, h_{i-1})``, the ReLU applied.
    biases
        Whether to return the scales of biases too.

    Returns
    -------
    tuple of two lists of Tensor
        Scales of the weights, shaped like them, and of the biases, shapes ``(..., h_i)``; the second list is empty
        without ``biases``.

    Notes
    -----
    Cost: as many backward passes over the data as there are outputs. Not differentiable. Source: derived.

    Examples
    --------
    >>> w = [torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.tensor([[2.0, -1.0]])]
    >>> x = torch.tensor([[1.0, 1.0]])
    >>> fisher_scales(w, [x, (x @ w[0].mT).clamp_min(0)])[0]
    [tensor([[0., 0.],
            [1., 1.]]), tensor([[0., 9.]])]
    """
    with torch.no_grad():
        n, k = hidden[0].shape[-2], weights[-1].shape[-2]
        scales: list[Tensor] = []
        offsets: list[Tensor] = []
        # One row of derivatives for each output and example: (..., outputs, n, h_i).
        slopes: Tensor | None = None
        for i in range(len(weights) - 1, -1, -1):
            w, h = weights[i], hidden[i]
            square = h.new_ones((*h.shape[:-1], k)) if slopes is None else slopes.square().sum(-3)
            scales.append(square.mT @ h.square() / n)
            if biases:
                offsets.append(square.mean(-2))
            if i:
                live = (h > 0).to(h.dtype).unsqueeze(-3)
                slopes = live * w.unsqueeze(-2) if slopes is None else live * (slopes @ w.unsqueeze(-3))
    return scales[::-1], offsets[::-1]


def data_path_scales(
    weights: Sequence[Tensor],
    hidden: Sequence[Tensor],
    alpha: float,
    rule: Rule | None = None,
    *,
    biases: Sequence[Tensor | None] | None = None,
) -> list[Tensor]:
    r"""Return the scales κ of a ReLU network's weights in the geometry of data-dependent paths.

    ``rule="recursion"`` is `path_factors`, multiplied out. ``rule="mix"`` interpolates between Path-SGD and the
    diagonal natural gradient: :math:`\kappa = \alpha\,\kappa^{\text{Fisher}} + (1-\alpha)\,\kappa^{\text{path}}`
    with `fisher_scales`. Both see no rescaling of hidden units, and at :math:`\alpha = 0` both are Path-SGD.

    Parameters
    ----------
    weights
        Matrices of shapes ``(..., h_i, h_{i-1})``; leading dimensions are networks.
    hidden
        What each layer takes in, ``[x, h_1, ...]``, shapes ``(..., n, h_{i-1})``, the ReLU applied.
    alpha
        Share of the data: in [0, 1) for the recursion, in [0, 1] for the mix.
    rule
        ``"recursion"`` or ``"mix"``; None for the recursion, and at :math:`\alpha = 1`, where it degenerates, the mix.
    biases
        One of shape ``(..., h_i)``, or None, for every layer; without biases when omitted. Only the weights'
        scales are returned.

    Returns
    -------
    list of Tensor
        Shaped like ``weights``.

    Raises
    ------
    ValueError
        ``alpha`` or ``rule`` is out of range, or data are missing.

    Examples
    --------
    >>> w = [torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.tensor([[2.0, -1.0]])]
    >>> x = torch.tensor([[1.0, 1.0]])
    >>> hidden = [x, (x @ w[0].mT).clamp_min(0)]
    >>> data_path_scales(w, hidden, 0.0)[1], data_path_scales(w, hidden, 0.5)[1]
    (tensor([[5., 9.]]), tensor([[1.5000, 9.0000]]))
    """
    alpha, rule = data_share(alpha, rule)
    if len(hidden) != len(weights):
        raise ValueError(f"hidden: must hold what each of the {len(weights)} layers takes in, got {len(hidden)}")
    if rule == "recursion" or not alpha:
        factors = path_factors(weights, hidden, alpha, biases=biases)
        return [outer[..., :, None] * inner[..., None, :] for outer, inner in factors]
    fisher, _ = fisher_scales(weights, hidden)
    if alpha == 1:
        return fisher
    paths = path_factors(weights, biases=biases)
    return [
        f.mul_(alpha).add_((1 - alpha) * (outer[..., :, None] * inner[..., None, :]))
        for f, (outer, inner) in zip(fisher, paths, strict=True)
    ]


def affine(found: Sequence[ly.Layer]) -> tuple[list[Tensor], list[Tensor | None]] | None:
    """Return weights and biases if the layers are linear with ReLU or nothing between them, else None.

    A flattening may come first.
    """
    found = found[1:] if found[0].kind == ly.FLATTEN else found
    linear = [layer for layer in found if layer.kind == ly.LINEAR]
    if len(linear) + sum(layer.kind == ly.POINTWISE for layer in found) < len(found):
        return None
    return [layer.weight for layer in linear if layer.weight is not None], [layer.bias for layer in linear]
