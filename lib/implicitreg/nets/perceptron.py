"""Multilayer perceptrons without biases as lists of weight matrices: starts, outputs and rescalings."""

import copy
import itertools
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from implicitreg import checks
from implicitreg.nets import layers as ly


def gaussian_weights(
    sizes: Sequence[int], generator: torch.Generator, *, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    r"""Return weight matrices with independent entries :math:`\mathcal N(0, 1/h_{i-1})`: a *balanced* start.

    Incoming weights of different units have nearly equal norms, about 1.

    Parameters
    ----------
    sizes
        :math:`h_0, h_1, \ldots, h_d`: number of inputs, of hidden units by layer, of outputs.
    generator
        Source of randomness, on the CPU.
    dtype
        float64, or float32.

    Returns
    -------
    list of Tensor
        :math:`W_1, \ldots, W_d` of shapes ``(h_i, h_{i-1})``.

    Raises
    ------
    TypeError
        ``generator`` is no `torch.Generator`.
    ValueError
        ``sizes`` are not at least two integers >= 1.

    Examples
    --------
    >>> [tuple(w.shape) for w in gaussian_weights((64, 256, 10), torch.Generator().manual_seed(0))]
    [(256, 64), (10, 256)]
    """
    sizes = checks.dimensions(sizes, "sizes")
    checks.random(generator, "generator")
    # Drawn in float64 whatever the dtype, so that float32 starts from the same point, rounded.
    return [
        (torch.randn(h, below, generator=generator, dtype=torch.float64) / below**0.5).to(dtype)
        for below, h in itertools.pairwise(sizes)
    ]


def unbalanced_weights(weights: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    r"""Return the same function with a quarter of its hidden units rescaled, by factors around ten.

    A quarter as many times as there are hidden units, one of them is picked, with replacement; its incoming
    weights are multiplied and its outgoing weights divided by :math:`10\,e^z`, :math:`z \sim \mathcal N(0, 1)`.
    About :math:`1 - e^{-1/4}` = 22 % of the units are touched, some repeatedly.

    Parameters
    ----------
    weights
        Matrices of shapes ``(h_i, h_{i-1})``, of a network with at least one hidden layer.
    generator
        Source of randomness, on the CPU.

    Returns
    -------
    list of Tensor
        New matrices.

    Raises
    ------
    TypeError
        ``generator`` is no `torch.Generator`, or a weight is no floating-point tensor.
    ValueError
        No hidden layer, or matrices that do not fit each other.

    Notes
    -----
    Source: the MATLAB release of Path-SGD, which picks a quarter of each layer's units; here the picks are pooled
    over all hidden layers.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> w = gaussian_weights((3, 40, 2), generator)
    >>> u = unbalanced_weights(w, generator)
    >>> bool((u[0].norm(dim=1) > 3 * w[0].norm(dim=1)).any()), torch.allclose(u[1] @ u[0], w[1] @ w[0])
    (True, True)
    """
    checks.random(generator, "generator")
    weights = ly.matrices(weights, "weights")
    sizes = [w.shape[-2] for w in weights[:-1]]
    if not sizes:
        raise ValueError("weights: must have at least one hidden layer")
    total = sum(sizes)
    picks = torch.randint(total, (total // 4,), generator=generator)
    factors = 10 * torch.randn(len(picks), generator=generator, dtype=torch.float64).exp()
    logs = torch.zeros(total, dtype=torch.float64).index_add_(0, picks, factors.log())
    return _rescaled(weights, [s.exp() for s in torch.split(logs, sizes)])


def _rescaled(weights: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor]:
    """Multiply the incoming weights of each hidden unit by its scale, divide the outgoing ones."""
    scaled = []
    for i, w in enumerate(weights):
        if i < len(scales):
            w = w * scales[i].to(w)[..., :, None]
        if i > 0:
            w = w / scales[i - 1].to(w)[..., None, :]
        scaled.append(w)
    return scaled


def outputs(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    r"""Return :math:`f_w(x) = W_d\,\phi(W_{d-1} \cdots \phi(W_1 x))` with :math:`\phi(z) = \max(z, 0)`.

    Parameters
    ----------
    weights
        Matrices of shapes ``(..., h_i, h_{i-1})``; leading dimensions are networks.
    x
        Inputs, shape ``(..., n, h_0)``: one set for all networks, or one for each.

    Returns
    -------
    Tensor
        Shape ``(..., n, h_d)``.

    Examples
    --------
    >>> outputs([torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0, 3.0]])], torch.tensor([[1.0], [-1.0]]))
    tensor([[2.],
            [3.]])
    """
    h = x
    for i, w in enumerate(weights):
        h = (h.clamp_min(0) if i else h) @ w.mT
    return h


def perceptron(weights: Sequence[Tensor]) -> nn.Sequential:
    """Return the module that computes `outputs`: linear layers without biases, ReLU between them.

    Parameters
    ----------
    weights
        Matrices of shapes ``(h_i, h_{i-1})``; they are copied.

    Returns
    -------
    torch.nn.Sequential

    Raises
    ------
    TypeError, ValueError
        No sequence of matrices that fit each other.

    Examples
    --------
    >>> perceptron([torch.ones(4, 3), torch.ones(2, 4)])(torch.ones(1, 3))
    tensor([[12., 12.]], grad_fn=<MmBackward0>)
    """
    built: list[nn.Module] = []
    for w in ly.matrices(weights, "weights"):
        if w.ndim != 2:
            raise ValueError(f"weights: a module is one network, so matrices must have two dimensions, got {w.ndim}")
        # Made empty: drawing weights that are overwritten at once would disturb the global generator.
        linear = nn.Linear(w.shape[1], w.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(w.detach().clone())
        built += [linear, nn.ReLU()]
    return nn.Sequential(*built[:-1])


def as_module(network: ly.Network) -> nn.Module:
    """Return a network as a module: itself, or the `perceptron` of its weight matrices.

    Raises
    ------
    TypeError, ValueError
        As for `perceptron`; the message calls it ``model``.
    """
    if isinstance(network, nn.Module):
        return network
    if any(w.ndim != 2 for w in ly.matrices(network)):
        raise ValueError(f"model: must be one network, got weights of shapes {[tuple(w.shape) for w in network]}")
    return perceptron(network)


@overload
def rescale_nodes(model: nn.Module, generator: torch.Generator, *, scale: float = ...) -> nn.Module: ...
@overload
def rescale_nodes(model: Sequence[Tensor], generator: torch.Generator, *, scale: float = ...) -> list[Tensor]: ...
def rescale_nodes(model: ly.Network, generator: torch.Generator, *, scale: float = 1.0) -> nn.Module | list[Tensor]:
    r"""Return a copy of a network, every hidden unit rescaled at random: other weights, the same function.

    The incoming weights and the bias of each hidden unit are multiplied by :math:`c = e^z`,
    :math:`z \sim \mathcal N(0, \text{scale}^2)`, its outgoing weights are divided by c. In a convolution a channel
    is one unit; where a batch norm precedes the non-linearity, its weight and bias are what is multiplied.

    Parameters
    ----------
    model
        A module built of supported layers, or weight matrices ``(..., h_i, h_{i-1})``. It is not changed.
    generator
        Source of randomness, on the CPU.
    scale
        Standard deviation of log c, > 0.

    Returns
    -------
    torch.nn.Module or list of Tensor
        The rescaled copy.

    Raises
    ------
    TypeError
        A layer is not supported, parametrised or used twice, adds units to others, or takes in channels that no full
        Flatten made into its inputs; or ``generator`` is no `torch.Generator`.
    ValueError
        ``scale`` is not > 0, or layers do not fit each other.

    Notes
    -----
    Cost: one pass over the weights and a copy of them. Source: Neyshabur et al. 2015, Norm-Based Capacity Control in
    Neural Networks.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    >>> other = rescale_nodes(net, torch.Generator().manual_seed(0))
    >>> x = torch.ones(1, 3, dtype=torch.float64)
    >>> torch.allclose(net(x), other(x)), torch.allclose(net[0].weight, other[0].weight)
    (True, False)
    """
    checks.random(generator, "generator")
    scale = checks.positive(scale, "scale")

    def draw(*shape: int) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).exp()

    if not isinstance(model, nn.Module):
        weights = ly.matrices(model)
        return _rescaled(weights, [draw(*w.shape[:-1]) for w in weights[:-1]])
    ly.layers(model)
    model = copy.deepcopy(model)
    # Unlike `layers`, batch norms stay apart here: they carry the scale of the unit in front of them.
    steps: list[tuple[Any, int]] = [(m, kind) for _, m, kind in ly.modules(model) if kind <= ly.BATCH_NORM]
    _check_units(model)
    for module, _ in steps:
        if "weight" not in module._parameters:
            raise TypeError(f"model: {type(module).__name__} has a weight that is no parameter and cannot be rescaled")
    shared = [id(m if m.weight is None else m.weight) for m, _ in steps]
    if len(set(shared)) < len(shared):
        raise TypeError(ly.SHARED)
    with torch.no_grad():
        above: Tensor | None = None
        for i, (module, kind) in enumerate(steps):
            if above is not None:
                _divide_incoming(module, kind, above)
                above = None
            last = all(k == ly.BATCH_NORM for _, k in steps[i + 1 :])
            followed = i + 1 < len(steps) and steps[i + 1][1] == ly.BATCH_NORM
            if last or followed:
                continue
            if module.weight is None:
                raise TypeError("model: a batch norm without weights (affine=False) cannot be rescaled")
            above = draw(module.weight.shape[0])
            for parameter in (module.weight, module.bias):
                if parameter is not None:
                    parameter.mul_(above.to(parameter).reshape(-1, *[1] * (parameter.ndim - 1)))
    return model


def _check_units(model: nn.Module) -> None:
    """Refuse layers that do not take in single units of the layer before: rescaling these would change the function."""
    # What is scaled: the last dimension ("units", of a linear layer), the second ("channels"), blocks of the last (the
    # channels flattened), or either of the first two ("normalised", by a batch norm that comes first).
    what, size, dims, flat = "inputs", 0, 0, False
    for name, module, kind in ly.modules(model):
        m: Any = module
        wrong = ""
        if kind == ly.LINEAR:
            if what == "channels" or (what == "normalised" and m.in_features != size):
                wrong = "takes in channels that no Flatten(1) made into units"
            elif what == "units" and m.in_features != size:
                wrong = "takes in units of several positions"
            what, size = "units", m.out_features
        elif kind == ly.CONV:
            if what in ("units", "blocks"):
                wrong = "takes in units that are not its channels"
            what, dims = "channels", m.weight.ndim
        elif kind == ly.BATCH_NORM:
            if what == "units" and m.num_features != size:
                wrong = "normalises other units than those before it"
            if what == "blocks" or (what == "inputs" and flat):
                what = "units"
            elif what == "inputs":
                what = "normalised" if isinstance(m, nn.BatchNorm1d) else "channels"
                dims = {nn.BatchNorm1d: 3, nn.BatchNorm2d: 4}.get(type(m), 5)
            size = m.num_features
        elif kind == ly.FLATTEN:
            if what in ("channels", "normalised") and m.start_dim == 1 and m.end_dim in (-1, dims - 1):
                what = "blocks"
        elif kind in (ly.AVERAGE, ly.MAXIMUM) and flat:
            wrong = "pools different units"
        elif kind == ly.BRANCH:
            wrong = "adds its units to others"
        if wrong:
            raise TypeError(f"model: {type(m).__name__} (at {name!r}) {wrong}, which cannot be rescaled apart")
        flat = flat or kind in (ly.LINEAR, ly.FLATTEN)


def _divide_incoming(module: Any, kind: int, scales: Tensor) -> None:
    weight = module.weight
    inputs = weight.shape[1] * (module.groups if kind == ly.CONV else 1)
    if inputs % len(scales) or (kind == ly.CONV and inputs != len(scales)):
        raise ValueError(f"model: {type(module).__name__} with {inputs} inputs does not follow {len(scales)} units")
    if kind == ly.CONV:
        # The incoming channels of each group of outgoing channels.
        groups = scales.reshape(module.groups, -1).repeat_interleave(weight.shape[0] // module.groups, dim=0)
        weight.div_(groups.to(weight).reshape(*weight.shape[:2], *[1] * (weight.ndim - 2)))
    else:
        # After a flattening, one channel covers a block of features.
        weight.div_(scales.repeat_interleave(inputs // len(scales)).to(weight))
