"""Sums over all paths of a network from its inputs to its outputs, by one forward pass."""

from collections.abc import Callable, Mapping, Sequence
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrize

from implicitreg import checks
from implicitreg.nets import layers as ly
from implicitreg.nets.recurrent import ReLURecurrent

Power = Callable[[Tensor], Tensor]


def path_sum(
    network: ly.Network, p: float = 2.0, *, input_shape: Sequence[int] | None = None, bias: bool = False
) -> Tensor:
    r"""Return the sum over all paths of the product of :math:`|w|^p` along each, :math:`\phi_p^p`.

    .. math:: \phi_p(w)^p = \sum_{\text{input} \to v_1 \to \cdots \to \text{output}} \prod_e |w_e|^p
              = \mathbf 1^\top |W_d|^{\circ p} \cdots |W_1|^{\circ p}\, \mathbf 1.

    One forward pass on an input of ones with every weight replaced by :math:`|w|^p`. It may under- or overflow;
    `log_path_sum` does not. A skip connection adds the paths of its shortcut to those of its branch; where it passes
    on the input itself, these are edges of weight 1.

    Parameters
    ----------
    network
        A module built of supported layers, a `ReLURecurrent`, or weight matrices ``(..., h_i, h_{i-1})``.
    p
        Exponent, > 0 and finite.
    input_shape
        Shape of one input, without the batch dimension: needed where the first layer does not tell it.
    bias
        Whether biases count, as edges from a node that is constantly 1.

    Returns
    -------
    Tensor
        Shape ``()`` for a module, ``(...)`` for weight matrices; differentiable.

    Raises
    ------
    TypeError
        A layer is not supported; the message names it.
    ValueError
        ``p`` is not > 0, ``input_shape`` is missing or does not fit, or weight matrices do not fit each other.

    Examples
    --------
    >>> w = [torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.tensor([[2.0, -1.0]])]
    >>> path_sum(w, p=1), path_sum(w, p=2)
    (tensor(9.), tensor(29.))
    """
    p = checks.positive(p, "p")
    return _total(network, _power(p), p, input_shape, bias)


def _power(p: float) -> Power:
    if p == 1:
        return torch.abs
    if p == 2:
        return torch.square
    return lambda w: w.abs().pow(p)


def _total(network: ly.Network, power: Power, p: float, input_shape: Sequence[int] | None, bias: bool) -> Tensor:
    if isinstance(network, ReLURecurrent):
        return _unrolled(network, power)
    found = ly.layers(network)
    start = None
    if found[0].kind != ly.LINEAR or input_shape is not None:
        shape = ly.input_dimensions(found, input_shape)
        if found[0].kind != ly.LINEAR:
            start = _ones(found, (1, *shape))
    blamed = "model" if input_shape is None else "input_shape"

    def through(layer: ly.Layer, a: Tensor | None) -> Tensor | None:
        if layer[0] == ly.POINTWISE:
            return a
        # The first linear layer sees ones: its rows are summed.
        a = power(layer[3]).sum(-1) if a is None else _through(layer, a, power, p, blamed)  # type: ignore[arg-type]
        return a + _edges(layer, power(layer.bias), a) if bias and layer.bias is not None else a

    def joined(layer: ly.Layer, a: Tensor | None, b: Tensor | None) -> Tensor | None:
        assert a is not None
        assert b is not None
        return _sum(layer, a, b, blamed)

    a = ly.followed(found, start, through, joined)
    assert a is not None
    return a.sum() if isinstance(network, nn.Module) else a.sum(-1)


def _sum(layer: ly.Layer, a: Tensor, b: Tensor, blamed: str) -> Tensor:
    """Return the sums of the paths that end in each unit where a skip connection ends."""
    if a.ndim != b.ndim:  # one of them without its batch dimension
        a, b = (each[None] if each.ndim == 1 else each for each in (a, b))
    if a.shape != b.shape:
        raise ly.misfit(layer, a.shape[a.ndim > 1 :], blamed)
    return a + b


def _ones(found: Sequence[ly.Layer], shape: Sequence[int]) -> Tensor:
    first = next(layer.weight for layer in found if layer.weight is not None)
    return first.new_ones(shape)


def _edges(layer: ly.Layer, b: Tensor, a: Tensor) -> Tensor:
    """Return the edges ``b`` from the constant node into the units of a layer, to be added to the sums ``a``."""
    return b if layer.kind == ly.LINEAR else b.reshape(-1, *[1] * (a.ndim - 2))


def _through(layer: ly.Layer, a: Tensor, power: Power, p: float, blamed: str) -> Tensor:
    """Pass the sums ``a`` of the paths that end in each unit through one layer, without its biases."""
    kind, _, module, weight, _ = layer
    if kind == ly.POINTWISE:
        return a
    try:
        if kind == ly.LINEAR:
            assert weight is not None
            if weight.ndim > 2:
                return (power(weight) @ a.unsqueeze(-1)).squeeze(-1)
            if a.ndim == 1:
                return torch.mv(power(weight), a)
            if a.ndim == 2 or module is None:
                return F.linear(a, power(weight))
        else:
            if a.ndim == 1:  # units of a linear layer, summed without their batch dimension
                a = a[None]
            if kind == ly.CONV:
                assert weight is not None
                if a.ndim == weight.ndim:
                    return ly.convolve(layer, a, power(weight))
            elif kind == ly.BATCH_NORM:
                assert weight is not None
                return a * power(weight).reshape(-1, *[1] * (a.ndim - 2))
            else:
                return ly.pooled(layer, a, p) if kind == ly.AVERAGE else module.forward(a)
    except (RuntimeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ly.misfit(layer, a.shape[a.ndim > 1 :], blamed) from error
    raise ly.misfit(layer, a.shape[a.ndim > 1 :], blamed)


def _unrolled(network: ReLURecurrent, power: Power) -> Tensor:
    into, again, out = power(network.w_in).sum(-1), power(network.w_rec), power(network.w_out)
    a = into
    for _ in range(network.steps - 1):
        a = into + again @ a
    return (out @ a).sum()


def log_path_sum(
    network: ly.Network, p: float = 2.0, *, input_shape: Sequence[int] | None = None, bias: bool = False
) -> Tensor:
    r"""Return :math:`\ln \phi_p^p`, which neither under- nor overflows however deep the network is.

    Sums and weights are divided by their largest entry at every layer, and the logarithms of these are added up,
    in float64. Arguments and errors are those of `path_sum`; not differentiable; ``-inf`` where every path has a
    weight 0.

    Examples
    --------
    >>> w = [torch.full((1, 1), 1e-6)] * 60
    >>> path_sum(w, p=2), round(log_path_sum(w, p=2).item(), 3)
    (tensor(0.), -1657.861)
    """
    p = checks.positive(p, "p")
    power = _power(p)
    with torch.no_grad():
        if isinstance(network, ReLURecurrent):
            into, into_log = _normalised(network.w_in, 2)
            again, again_log = _normalised(network.w_rec, 2)
            out, out_log = _normalised(network.w_out, 2)
            into, again = power(into).sum(-1), power(again)
            a, log = into, p * into_log
            for _ in range(network.steps - 1):
                a, shift = _normalised(again @ a, 1)
                a, log = _joined(a, log + shift + p * again_log, into, p * into_log)
            return (log + p * out_log + (power(out) @ a).sum().log()).to(network.w_in.dtype)
        found = ly.layers(network)
        # Of weight matrices, the leading dimensions are networks, each with a scale of its own.
        batched = not isinstance(network, nn.Module)
        shape = ly.input_dimensions(found, input_shape)
        blamed = "model" if input_shape is None else "input_shape"
        ones = _ones(found, shape if batched else (1, *shape))

        def through(layer: ly.Layer, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            a, log = state
            if layer.weight is not None:
                weight, shift = _normalised(layer.weight, 2 if batched else layer.weight.ndim)
                layer, log = layer._replace(weight=weight), log + p * shift
            a = _through(layer, a, power, p, blamed)
            a, shift = _normalised(a, 1 if batched else a.ndim)
            log = log + shift
            if bias and layer.bias is not None:
                edges, shift = _normalised(layer.bias, 1)
                a, log = _joined(a, log, _edges(layer, power(edges), a), p * shift)
            return a, log

        def joined(layer: ly.Layer, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            if one[0].shape != other[0].shape:
                raise ly.misfit(layer, one[0].shape[1:], blamed)
            return _joined(*one, *other)

        a, log = ly.followed(found, (ones.double(), ones.new_zeros((), dtype=torch.float64)), through, joined)
        return (log + (a.sum(-1) if batched else a.sum()).log()).to(ones.dtype)


def _normalised(w: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Divide by the largest absolute value over the last ``dims`` dimensions; return its logarithm too."""
    w = w.double()
    top = w.abs().amax(tuple(range(-dims, 0)), keepdim=True)
    return w / torch.where(top > 0, top, 1.0), top.reshape(top.shape[: w.ndim - dims]).log()


def _joined(a: Tensor, log: Tensor, b: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``a exp(log) + b exp(height)`` as a tensor and the logarithm of its scale."""
    # Where both are 0 and their logarithms -inf, some finite number is still needed.
    common = torch.maximum(log, height).clamp_min(torch.finfo(log.dtype).min)
    return a * (log - common).exp() + b * (height - common).exp(), common


@overload
def path_scales(
    network: nn.Module, p: float = ..., *, input_shape: Sequence[int] | None = ...
) -> dict[str, Tensor]: ...
@overload
def path_scales(network: Sequence[Tensor], p: float = ...) -> list[Tensor]: ...
def path_scales(
    network: ly.Network, p: float = 2.0, *, input_shape: Sequence[int] | None = None
) -> Mapping[str, Tensor] | list[Tensor]:
    r"""Return the scale :math:`\kappa_e` of every weight in the geometry of the path norm.

    .. math:: \kappa_e = \Big(\sum_{\text{paths } \ni e} \prod_{e' \ne e} |w_{e'}|^p\Big)^{2/p}
              = \Big(\frac{\partial \phi_p^p}{\partial |w_e|^p}\Big)^{2/p}.

    For ``p=2`` it is half the second derivative of :math:`\phi_2^2` in the weight. Multiplying the incoming
    weights of a hidden unit by c and dividing the outgoing ones by c divides the κ of the former by c² and
    multiplies that of the latter by c²: steepest descent with these scales does not see such a rescaling. Biases
    of a module count, as edges from a node that is constantly 1.

    Parameters
    ----------
    network
        A module built of supported layers without batch norm, each used once, or weight matrices.
    p
        Exponent, > 0 and finite.
    input_shape
        Shape of one input, without the batch dimension: needed where the first layer does not tell it.

    Returns
    -------
    dict or list
        Tensors shaped like the parameters: by name for a module, in order for weight matrices.

    Raises
    ------
    TypeError
        A layer is not supported (a batch norm rescales every unit by itself), or shared.
    ValueError
        As for `path_sum`.

    Notes
    -----
    Cost: one forward and one backward pass on a single input. Source: Neyshabur et al. 2015, Path-SGD
    (recalled; agrees with the authors' MATLAB release).

    Examples
    --------
    >>> w = [torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.tensor([[2.0, -1.0]])]
    >>> path_scales(w)
    [tensor([[4., 4.],
            [1., 1.]]), tensor([[5., 9.]])]
    """
    p = checks.positive(p, "p")
    power = _power(p)
    leaves: dict[int, Tensor] = {}

    def leaf(w: Tensor) -> Tensor:
        if id(w) in leaves:
            raise TypeError(ly.SHARED)
        leaves[id(w)] = power(w.detach()).requires_grad_()
        return leaves[id(w)]

    if isinstance(network, nn.Module):
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
            raise TypeError("model: unsupported layer BatchNorm: it rescales every unit by itself")
        if any(parametrize.is_parametrized(m) for m in network.modules()):
            raise TypeError("model: a parametrised layer has other weights than its parameters")
        parameters: Sequence[Tensor] = list(network.parameters())
    else:
        parameters = network = ly.matrices(network)
    with torch.inference_mode(False), torch.enable_grad():
        total = _total(network, leaf, p, input_shape, bias=True)
        # Weights that the forward pass does not use are on no path.
        found = [leaves[id(w)] if id(w) in leaves else torch.zeros_like(w, requires_grad=True) for w in parameters]
        # Recurrent weights are on no path of a single step.
        grads = list(torch.autograd.grad(total.sum(), found, allow_unused=True, materialize_grads=True))
    if p != 2:
        grads = [g.pow(2 / p) for g in grads]
    if isinstance(network, nn.Module):
        return dict(zip((name for name, _ in network.named_parameters()), grads, strict=True))
    return grads


def shared_path_scales(
    w_in: Tensor, w_rec: Tensor, w_out: Tensor, steps: int, *, second: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the scales κ of recurrent networks, whose weights lie on a path more than once.

    .. math:: \kappa_i = \tfrac12 \frac{\partial^2 \phi_2^2}{\partial w_i^2} = \kappa^{(1)}_i + \kappa^{(2)}_i,
              \qquad \kappa^{(1)}_i = \frac{\partial \phi_2^2}{\partial (w_i^2)}, \qquad
              \kappa^{(2)}_i = 2 w_i^2 \frac{\partial^2 \phi_2^2}{\partial (w_i^2)^2}.

    The second term counts the ordered pairs of edges of one weight on one path, and only recurrent weights have
    any. With :math:`A = W_\text{rec}^{\circ 2}`, :math:`b = W_\text{in}^{\circ 2} \mathbf 1`,
    :math:`c = (W_\text{out}^{\circ 2})^\top \mathbf 1` the path norm is
    :math:`\phi_2^2 = \sum_{t < T} c^\top A^t b`, and

    .. math:: \kappa^{(2)}_{jk} = 4 A_{jk} \sum_{l + m + r \le T-3} (c^\top A^l)_j\, (A^m)_{kj}\, (A^r b)_k .

    Parameters
    ----------
    w_in, w_rec, w_out
        Weights as in `ReLURecurrent`, shapes ``(..., h, inputs)``, ``(..., h, h)`` and ``(..., outputs, h)``; leading
        dimensions are networks.
    steps
        Length T of the sequences.
    second
        Whether the second term is added.

    Returns
    -------
    tuple of three Tensor
        Shaped like the weights; not differentiable.

    Raises
    ------
    ValueError
        ``steps`` is no integer >= 1.

    Notes
    -----
    Cost: :math:`O(T h^2)`, with the second term :math:`O(T h^3 + T^2 h^2)`. Source: Neyshabur et al. 2016,
    Path-Normalized Optimization of Recurrent Neural Networks (recalled), which leaves the second term out.

    Examples
    --------
    One unit with all weights 1: :math:`\phi_2^2 = 1 + w^2 + w^4`, and half its second derivative at 1 is 7.

    >>> one = torch.ones(1, 1)
    >>> shared_path_scales(one, one, one, 3)[1], shared_path_scales(one, one, one, 3, second=False)[1]
    (tensor([[7.]]), tensor([[3.]]))
    """
    steps = checks.integer(steps, "steps", 1)
    with torch.no_grad():
        a = w_rec.square()
        right, left = [w_in.square().sum(-1, keepdim=True)], [w_out.square().sum(-2).unsqueeze(-1)]
        transposed = a.mT
        for _ in range(steps - 1):
            right.append(a @ right[-1])
            left.append(transposed @ left[-1])
        # Shapes (..., h, T); sums of the first s + 1 columns in column s.
        ends, starts = torch.cat(right, -1).cumsum(-1), torch.cat(left, -1)
        once = starts[..., :-1] @ ends[..., :-1].flip(-1).mT
        if second and steps > 2:
            pairs = starts[..., : steps - 2] @ ends[..., : steps - 2].flip(-1).mT
            # The power m = 0 joins only an edge to itself: a loop.
            pairs = torch.diag_embed(pairs.diagonal(dim1=-2, dim2=-1))
            power = transposed
            for m in range(1, steps - 2):
                rest = steps - 2 - m
                pairs.addcmul_(power, starts[..., :rest] @ ends[..., :rest].flip(-1).mT)
                if m < steps - 3:
                    power = power @ transposed
            once.addcmul_(a, pairs, value=4)
        return (
            starts.sum(-1, keepdim=True).expand_as(w_in).clone(),
            once,
            ends[..., -1:].mT.expand_as(w_out).clone(),
        )
