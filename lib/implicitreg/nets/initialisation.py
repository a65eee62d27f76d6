"""He initialisation: of lists of weight matrices, and of modules."""

import itertools
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from implicitreg import checks

Model = TypeVar("Model", bound=nn.Module)
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def he_weights(
    sizes: Sequence[int],
    generator: torch.Generator,
    *,
    networks: int | None = None,
    output_variance: float = 2.0,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    r"""Return weight matrices with independent entries :math:`\mathcal N(0, 2/n_{l-1})`: the start for ReLU networks.

    The last matrix has entries :math:`\mathcal N(0, v/n_L)`; all are multiplied by ``scale``. With v = 2, a network of
    any depth and width has :math:`\mathbb E\,f(x)^2 = \tfrac2d\|x\|^2` at scale 1.

    Parameters
    ----------
    sizes
        :math:`d = n_0, n_1, \ldots, n_{L+1}`: number of inputs, of hidden units by layer, of outputs.
    generator
        Source of randomness, on the CPU.
    networks
        Number m of independent networks, >= 1; ``None``: one, without a leading dimension.
    output_variance
        v > 0: 2 as for the other layers, 1 as for layers that no ReLU follows.
    scale
        Factor of all matrices, > 0.
    dtype
        float64, or float32: the same draws, rounded.

    Returns
    -------
    list of Tensor
        Shapes ``(n_l, n_{l-1})``, or ``(m, n_l, n_{l-1})``.

    Raises
    ------
    TypeError
        ``generator`` is no `torch.Generator`, or ``dtype`` is another.
    ValueError
        Another argument is out of range.

    Notes
    -----
    Source: He et al. 2015, arXiv:1502.01852. The default of `torch.nn.Linear` is another: uniform, with variance
    :math:`1/(3 n_{l-1})` and biases.

    Examples
    --------
    >>> first, second = he_weights((64, 2000, 10), torch.Generator().manual_seed(0))
    >>> first.shape, round(32 * first.square().mean().item(), 2), round(1000 * second.square().mean().item(), 1)
    (torch.Size([2000, 64]), 1.0, 1.0)
    """
    sizes = checks.dimensions(sizes, "sizes")
    checks.random(generator, "generator")
    variance = checks.positive(output_variance, "output_variance")
    scale = checks.positive(scale, "scale")
    checks.precision(dtype, "dtype")
    several = () if networks is None else (checks.integer(networks, "networks", 1),)
    weights = []
    for i, (below, units) in enumerate(itertools.pairwise(sizes)):
        deviation = ((variance if i == len(sizes) - 2 else 2.0) / below) ** 0.5
        drawn = torch.randn((*several, units, below), generator=generator, dtype=torch.float64)
        weights.append(drawn.mul_(scale * deviation).to(dtype))
    return weights


def he_normal_(
    model: Model,
    generator: torch.Generator,
    *,
    output_variance: float = 2.0,
    bias_std: float = 0.0,
    scale: float = 1.0,
) -> Model:
    r"""Draw the weights of a module anew, in place: :math:`\mathcal N(0, 2/\text{fan-in})` in every layer.

    Layers are the linear and convolutional ones that the module holds, in the order of `torch.nn.Module.modules`; the
    last of them is the output layer, with :math:`\mathcal N(0, v/\text{fan-in})`. The fan-in of a convolution is its
    number of incoming channels of a group times the size of its kernel. Batch norms stay as they are.

    Parameters
    ----------
    model
        Is changed: weights and biases; its mode and what does not require a gradient stay so.
    generator
        Source of randomness, on the CPU. The draws are those of `he_weights`, each layer's weights before its biases.
    output_variance
        v > 0.
    bias_std
        Standard deviation of the biases, >= 0; 0: they are set to 0, and nothing is drawn for them.
    scale
        Factor of all weights and biases, > 0.

    Returns
    -------
    torch.nn.Module
        The module itself.

    Raises
    ------
    TypeError
        No module; or a layer whose weight is computed from others, shared with another layer, or not yet there.
    ValueError
        No layer with weights, or an argument is out of range.

    Notes
    -----
    Source: He et al. 2015, arXiv:1502.01852.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    >>> net = he_normal_(net, torch.Generator().manual_seed(0))
    >>> start = he_weights((3, 5, 2), torch.Generator().manual_seed(0))
    >>> torch.equal(net[0].weight, start[0]), torch.equal(net[2].weight, start[1]), net[0].bias.abs().max().item()
    (True, True, 0.0)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: must be a torch.nn.Module, got {type(model).__name__}")
    checks.random(generator, "generator")
    variance = checks.positive(output_variance, "output_variance")
    std = checks.at_least(bias_std, "bias_std", 0)
    scale = checks.positive(scale, "scale")
    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, _WEIGHTED)]
    if not layers:
        raise ValueError("model: must have at least one linear or convolutional layer")
    for name, layer in layers:
        if isinstance(layer, LazyModuleMixin):
            raise TypeError(f"model: {name!r} has no weights yet; call it once on an input")
        if parametrize.is_parametrized(layer) or "weight" not in layer._parameters:
            raise TypeError(f"model: the weight of {name!r} is computed from others and cannot be drawn")
    if len({id(layer.weight) for _, layer in layers}) < len(layers):
        raise TypeError("model: two layers share a weight, which cannot be drawn twice")
    with torch.no_grad():
        for i, (_, layer) in enumerate(layers):
            weight = layer.weight
            deviation = ((variance if i == len(layers) - 1 else 2.0) / weight[0].numel()) ** 0.5
            _draw(weight, scale * deviation, generator)
            if layer.bias is not None:
                if std:
                    _draw(layer.bias, scale * std, generator)
                else:
                    layer.bias.zero_()
    return model


def _draw(into: Tensor, deviation: float, generator: torch.Generator) -> None:
    # Drawn in float64 on the CPU whatever dtype and device, so that all start from the same point, rounded.
    into.copy_(torch.randn(into.shape, generator=generator, dtype=torch.float64).mul_(deviation))
