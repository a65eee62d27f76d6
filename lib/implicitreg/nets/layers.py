"""A feed-forward network as the list of its layers, whatever it was built from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from implicitreg import checks
from implicitreg.nets.residual import Residual

Network: TypeAlias = nn.Module | Sequence[Tensor]
"""A module built of supported layers, or the weight matrices of ReLU networks without biases."""

LINEAR, CONV, BATCH_NORM, AVERAGE, MAXIMUM, FLATTEN, POINTWISE, LEAKY, BRANCH, SHORTCUT, JOIN = range(11)

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_KINDS: dict[type[nn.Module], int] = {
    nn.Linear: LINEAR,
    nn.Conv1d: CONV,
    nn.Conv2d: CONV,
    nn.Conv3d: CONV,
    nn.BatchNorm1d: BATCH_NORM,
    nn.BatchNorm2d: BATCH_NORM,
    nn.BatchNorm3d: BATCH_NORM,
    nn.AvgPool1d: AVERAGE,
    nn.AvgPool2d: AVERAGE,
    nn.AvgPool3d: AVERAGE,
    nn.AdaptiveAvgPool1d: AVERAGE,
    nn.AdaptiveAvgPool2d: AVERAGE,
    nn.AdaptiveAvgPool3d: AVERAGE,
    nn.MaxPool1d: MAXIMUM,
    nn.MaxPool2d: MAXIMUM,
    nn.MaxPool3d: MAXIMUM,
    nn.AdaptiveMaxPool1d: MAXIMUM,
    nn.AdaptiveMaxPool2d: MAXIMUM,
    nn.AdaptiveMaxPool3d: MAXIMUM,
    nn.Flatten: FLATTEN,
    nn.ReLU: POINTWISE,
    nn.Identity: POINTWISE,
    nn.Dropout: POINTWISE,
    nn.Dropout1d: POINTWISE,
    nn.Dropout2d: POINTWISE,
    nn.Dropout3d: POINTWISE,
    Residual: BRANCH,
}
SUPPORTED = (
    "Sequential, Linear, Conv1d/2d/3d, ReLU, average and max pooling (adaptive too), BatchNorm1d/2d/3d, Flatten, "
    "Dropout, Identity and implicitreg.nets.Residual"
)


PIECEWISE_LINEAR: Mapping[type[nn.Module], int] = {
    **_KINDS,
    nn.LeakyReLU: LEAKY,
}
"""Layers whose output, along a line, bends where an input changes its sign or a maximum its place: nowhere else."""

SHARED = "model: a layer that is used twice shares its weights, which is not supported here"


class Layer(NamedTuple):
    """One layer; ``weight`` and ``bias`` are those of the function computed in evaluation mode.

    A batch norm that directly follows a linear or convolutional layer is folded into it:
    ``W <- W g / sqrt(var + eps)`` and ``b <- beta + g / sqrt(var + eps) (b - mean)``.
    """

    kind: int
    name: str
    module: Any
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def affine(self) -> bool:
        """Whether the layer has weights that paths run through."""
        return self.kind <= BATCH_NORM


def modules(
    network: nn.Module, name: str = "", kinds: Mapping[type[nn.Module], int] = _KINDS, supported: str = SUPPORTED
) -> Iterator[tuple[str, nn.Module, int]]:
    """Yield name, module and kind of every layer of a module, in order.

    A residual block, where ``kinds`` has it, is yielded before the layers of its branch (`BRANCH`), between these and
    the layers of its shortcut, however few (`SHORTCUT`), and after those (`JOIN`). A module with a forward of its own
    is followed symbolically, in evaluation mode (`implicitreg.nets.tracing`); where it adds, there is a residual block.

    Raises
    ------
    TypeError
        A layer is not supported; the message names it.
    """
    kind = kinds.get(type(network))
    if kind is None and getattr(type(network), "forward", None) is nn.Sequential.forward:
        for key, child in network._modules.items():
            if child is not None:
                path = f"{name}.{key}" if name else key
                # Asked here too, which spares most layers a generator of their own.
                kind = kinds.get(type(child))
                if kind is None or kind == BRANCH:
                    yield from modules(child, path, kinds, supported)
                else:
                    yield path, child, kind
        return
    if kind is None:
        kind = kind_of(network, kinds)
    if kind == BRANCH:
        yield name, network, BRANCH
        block: Any = network
        prefix = f"{name}." if name else ""
        yield from modules(block.branch, f"{prefix}branch", kinds, supported)
        yield name, network, SHORTCUT
        if block.shortcut is not None:
            yield from modules(block.shortcut, f"{prefix}shortcut", kinds, supported)
        yield name, network, JOIN
    elif kind is not None:
        yield name, network, kind
    elif built_in(network):
        raise unsupported(network, name, supported)
    else:
        # Not at the top: it imports this module.
        from implicitreg.nets.tracing import traced

        yield from traced(network, name, kinds, supported)


def kind_of(module: nn.Module, kinds: Mapping[type[nn.Module], int]) -> int | None:
    """Return the kind of a module, which may be inherited, or None where it is not supported."""
    kind = kinds.get(type(module))
    if kind is None and not isinstance(module, LazyModuleMixin):  # a lazy one has no weights yet
        # A subclass that computes the same, such as a parametrised layer, is what it inherits from.
        for base, kind in kinds.items():
            if isinstance(module, base) and type(module).forward is base.forward:
                return kind
        return None
    return kind


def built_in(module: nn.Module) -> bool:
    """Whether a module's class is one of torch's own, which is supported by name or not at all."""
    return type(module).__module__.startswith("torch.") and not type(module).__module__.startswith("torch.fx.")


def unsupported(module: nn.Module, name: str, supported: str, reason: str = "") -> TypeError:
    """Return the error that says that a layer is not supported, where it is, and why."""
    where = f" (at {name!r})" if name else ""
    because = f": {reason}" if reason else ""
    return TypeError(
        f"model: unsupported layer {type(module).__name__}{where}{because}; supported are {supported}; "
        "the forward of other modules may call these, the functions that do the same, and add"
    )


@contextmanager
def evaluation(model: nn.Module, *, random: bool = False) -> Iterator[None]:
    """Put a module into evaluation mode, and its parts, their attributes and torch's generator back to what they were.

    Raises
    ------
    TypeError
        A batch norm has no running statistics, so that its outputs depend on the batch in every mode.
    ValueError
        Random numbers were drawn, unless ``random``: what the module computes is not a function.
    """
    for name, part in model.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None:
            raise TypeError(f"model: batch norm {name!r} without running statistics has no evaluation mode")
    training = [part for part in model.modules() if part.training]
    buffers = [
        (part, key, b, b.clone()) for part in model.modules() for key, b in part._buffers.items() if b is not None
    ]
    # A forward pass may store what it computes, or count: in attributes, or in lists and dictionaries of them.
    attributes = [vars(part) for part in model.modules()]
    holders = [each for own in attributes for each in own.values() if isinstance(each, dict | list)]
    kept = [(each, each.copy()) for each in (*attributes, *holders)]
    state = torch.get_rng_state()
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
        for holder, was in kept:
            _put_back(holder, was)
        for part, key, buffer, before in buffers:
            part._buffers[key] = buffer
            if not buffer.is_inference() and not buffer.is_meta and not torch.equal(buffer, before):
                buffer.detach().copy_(before)
        drawn = not torch.equal(torch.get_rng_state(), state)
        torch.set_rng_state(state)
    if drawn and not random:
        raise ValueError("model: must be deterministic in evaluation mode, but its forward drew random numbers")


def _put_back(holder: Any, was: Any) -> None:
    """Give a dictionary or list the very entries that it had."""
    if isinstance(holder, dict):
        if holder.keys() != was.keys() or any(holder[key] is not value for key, value in was.items()):
            holder.clear()
            holder.update(was)
    elif len(holder) != len(was) or any(a is not b for a, b in zip(holder, was, strict=True)):
        holder[:] = was


def unhooked(network: Network) -> None:
    """Refuse hooks that may change what a network computes, where what follows its layers meets what calls it.

    Raises
    ------
    TypeError
        Some part has a forward hook or forward pre-hook; the message names it.
    """
    for name, part in network.named_modules() if isinstance(network, nn.Module) else ():
        if part._forward_hooks or part._forward_pre_hooks:
            raise TypeError(
                f"model: a forward hook of {name!r} ({type(part).__name__}) may change what it computes, "
                "and measures that follow its layers do not run it; remove it first"
            )


def parameter(module: nn.Module, key: str, name: str) -> Any:
    """Return the weight or bias that a module has in evaluation mode.

    Raises
    ------
    TypeError
        It is neither a parameter nor parametrised: hooks compute it in the forward pass, so that it may be out of
        date.
    """
    # Looked up directly where that is possible: `Module.__getattr__` takes as long as a small matrix product.
    own = module._parameters
    if key in own:
        return own[key]
    if not parametrize.is_parametrized(module, key):
        raise TypeError(
            f"model: {key} of {name!r} ({type(module).__name__}) is no parameter and may be out of date; make pruning "
            "permanent, and use torch.nn.utils.parametrizations for a weight or spectral norm"
        )
    # In training mode, reading a spectral norm is a step of the iterations that estimate it.
    parametrizations: Any = module.parametrizations
    with evaluation(parametrizations[key]):
        return getattr(module, key)


def batch_norm(module: Any, name: str, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a batch norm in evaluation mode, computed in ``dtype`` or in its own."""
    if module.running_mean is None or module.running_var is None:
        raise TypeError("model: a batch norm without running statistics has no evaluation mode")
    scale = torch.rsqrt(module.running_var.to(dtype=dtype) + module.eps)
    weight, bias = parameter(module, "weight", name), parameter(module, "bias", name)
    if weight is not None:
        scale = scale * weight
    shift = -module.running_mean * scale
    return scale, shift if bias is None else shift + bias


def _weighted(kind: int, name: str, module: Any, dtype: torch.dtype | None) -> Layer:
    if kind == CONV and module.padding_mode != "zeros":
        raise TypeError(f"model: padding_mode {module.padding_mode!r} of {name!r} is not supported, only 'zeros'")
    weight = parameter(module, "weight", name)
    if weight.dtype not in (torch.float32, torch.float64):
        checks.floating(weight, f"{name}.weight")
    bias = parameter(module, "bias", name)
    return Layer(kind, name, module, weight.to(dtype=dtype), None if bias is None else bias.to(dtype=dtype))


def layers(
    network: Network,
    kinds: Mapping[type[nn.Module], int] = _KINDS,
    supported: str = SUPPORTED,
    dtype: torch.dtype | None = None,
) -> list[Layer]:
    """Return the layers of a network in order, batch norms folded where they follow a layer with weights.

    Parameters
    ----------
    network
        A module built of supported layers, or a sequence of weight matrices ``(..., h_i, h_{i-1})`` of ReLU
        networks without biases, whose leading dimensions are networks.
    kinds, supported
        The layers that are supported, and how to say so.
    dtype
        Of the weights that are returned, and in which batch norms are folded; None is that of the network.

    Raises
    ------
    TypeError
        A layer is not supported (the message names it), or a weight is no tensor of dtype float32 or float64.
    ValueError
        No layer with weights, or layers that do not fit each other in shape or dtype.
    """
    if not isinstance(network, nn.Module):
        return [Layer(LINEAR, f"weights[{i}]", None, w.to(dtype=dtype)) for i, w in enumerate(matrices(network))]
    found: list[Layer] = []
    units: int | None = None  # of a linear layer without anything but a ReLU or batch norm behind it
    for name, module, kind in modules(network, "", kinds, supported):
        if kind <= CONV:
            layer = _weighted(kind, name, module, dtype)
            found.append(layer)
            if kind == LINEAR:
                outputs, inputs = layer.weight.shape  # type: ignore[union-attr]
                if units not in (None, inputs):
                    raise misfit(layer, (units,), "model")
                units = outputs
        elif kind == BATCH_NORM:
            scale, shift = batch_norm(module, name, dtype)
            last = found[-1] if found else None
            if last is not None and last.kind <= CONV and last.weight is not None:
                if len(scale) != len(last.weight):
                    raise misfit(Layer(BATCH_NORM, name, module), (len(last.weight),), "model")
                weight = last.weight * scale.reshape(-1, *[1] * (last.weight.ndim - 1))
                bias = shift if last.bias is None else shift + scale * last.bias
                found[-1] = last._replace(weight=weight, bias=bias)
            else:
                found.append(Layer(BATCH_NORM, name, module, scale, shift))
        elif kind != POINTWISE or isinstance(module, nn.ReLU):
            if kind == MAXIMUM and module.return_indices:
                raise TypeError(f"model: return_indices=True of {name!r} is not supported")
            last = found[-1] if found else None
            if last is not None and last.kind == BRANCH and isinstance(last.module, Residual):
                _own_memory(name, module)
            found.append(Layer(kind, name, module))
        if kind in (CONV, AVERAGE, MAXIMUM, FLATTEN, BRANCH, SHORTCUT, JOIN):
            units = None
    dtypes = {layer.weight.dtype: layer.name for layer in found if layer.weight is not None}
    if not dtypes:
        raise ValueError("model: must have at least one layer with weights")
    if len(dtypes) > 1:
        mixed = ", ".join(f"{str(dtype).removeprefix('torch.')} (at {name!r})" for dtype, name in dtypes.items())
        raise ValueError(f"model: must have weights of one dtype, got {mixed}")
    return found


def _own_memory(name: str, module: nn.Module) -> None:
    """Refuse a first layer of a branch that would change what the skip connection passes on."""
    if getattr(module, "inplace", False):
        raise TypeError(f"model: inplace=True of {name!r} changes the input of the skip connection around it")


State = TypeVar("State")


def followed(
    found: Sequence[Layer],
    state: State,
    through: Callable[[Layer, State], State],
    joined: Callable[[Layer, State, State], State],
) -> State:
    """Carry a state through the layers, along both paths where a skip connection parts them.

    Parameters
    ----------
    found
        The layers.
    state
        What enters the network; it must not be changed in place.
    through
        Returns what a layer makes of a state.
    joined
        Returns what becomes of the states behind a branch and behind its shortcut.

    Returns
    -------
    State
        What leaves the network.
    """
    beside: list[State] = []
    for layer in found:
        kind = layer[0]
        if kind < BRANCH:
            state = through(layer, state)
        elif kind == BRANCH:
            beside.append(state)
        elif kind == SHORTCUT:
            # What the branch made waits while its input goes through the shortcut.
            beside[-1], state = state, beside[-1]
        else:
            state = joined(layer, beside.pop(), state)
    return state


def matrices(network: Sequence[Tensor], name: str = "model") -> list[Tensor]:
    """Return ``network`` as a list if it is a sequence of weight matrices that fit each other.

    Parameters
    ----------
    network
        Is checked.
    name
        Of the argument, for messages; where it is ``"model"``, a module would do as well.

    Raises
    ------
    TypeError
        No sequence, or a weight that is no tensor of dtype float32 or float64.
    ValueError
        No matrix, or matrices that do not fit each other.
    """
    if not isinstance(network, list | tuple):
        module = "a torch.nn.Module or " if name == "model" else ""
        raise TypeError(f"{name}: must be {module}a sequence of weight matrices, got {type(network).__name__}")
    if not network:
        raise ValueError(f"{name}: must hold at least one weight matrix")
    name = "weights" if name == "model" else name
    below: Tensor | None = None
    for i, w in enumerate(network):
        checks.floating(w, f"{name}[{i}]")
        if w.ndim < 2 or 0 in w.shape[-2:]:
            raise ValueError(f"{name}[{i}]: must have shape (..., h, h') with h, h' >= 1, got {tuple(w.shape)}")
        if below is not None and (w.shape[-1] != below.shape[-2] or w.dtype != below.dtype):
            raise ValueError(
                f"{name}[{i}]: {tuple(w.shape)} of {w.dtype} does not follow {tuple(below.shape)} of {below.dtype}"
            )
        below = w
    return list(network)


def finite(network: Network) -> None:
    """Refuse weights that are not finite, by name.

    Raises
    ------
    ValueError
        A parameter or buffer holds NaN or infinity; the message names it.
    """
    if isinstance(network, nn.Module):
        # Other buffers may be infinite, such as a mask; what they make of the outputs is checked there.
        norms = [(n, part) for n, part in network.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        named = [
            *network.named_parameters(),
            *((f"{n}.{key}", b) for n, part in norms for key, b in part.named_buffers()),
        ]
    else:
        named = [(f"weights[{i}]", w) for i, w in enumerate(matrices(network))]
    for name, w in named:
        checks.finite(w, f"model: {name!r}")


def misfit(layer: Layer, units: Sequence[int | None], name: str) -> ValueError:
    """Return the error that says that a layer does not fit the ones before it, or the input ``name``."""
    kind = "matrix" if layer.module is None else type(layer.module).__name__
    return ValueError(f"{name}: layer {layer.name!r} ({kind}) cannot take the units of shape {(*units,)} that reach it")


def input_dimensions(found: Sequence[Layer], input_shape: Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape of one input: as given, or as the first layer tells it.

    Raises
    ------
    ValueError
        ``input_shape`` holds no integers >= 1, does not fit a first layer that is linear, or is missing where the
        first layer does not tell it.
    """
    if input_shape is not None:
        if not isinstance(input_shape, tuple | list | torch.Size) or not input_shape:
            raise ValueError(f"input_shape: must be a sequence of integers >= 1, got {input_shape!r}")
        shape = tuple(checks.integer(size, "input_shape", 1) for size in input_shape)
        first = found[0]
        if first.kind == LINEAR and first.weight is not None and shape != first.weight.shape[-1:]:
            raise ValueError(f"input_shape: must be {tuple(first.weight.shape[-1:])} to fit the weights, got {shape}")
        return shape
    for layer in found:
        if layer.kind == LINEAR and layer.weight is not None:
            return (layer.weight.shape[-1],)
        if layer.kind == BATCH_NORM and isinstance(layer.module, nn.BatchNorm1d) and layer.weight is not None:
            return (layer.weight.shape[0],)
        if layer.kind not in (FLATTEN, POINTWISE, BRANCH, SHORTCUT, JOIN):
            raise ValueError(
                f"input_shape: is needed, because the first layer {type(layer.module).__name__} does not tell it; "
                "give it without the batch dimension, such as (1, 8, 8)"
            )
    raise ValueError("input_shape: is needed")


def convolve(layer: Layer, a: Tensor, weight: Tensor) -> Tensor:
    """Return the convolution of ``a`` with ``weight``, with stride, padding, dilation and groups of ``layer``."""
    m = layer.module
    return _CONVOLUTIONS[weight.ndim - 2](a, weight, None, m.stride, m.padding, m.dilation, m.groups)


def pooled(layer: Layer, a: Tensor, p: float) -> Tensor:
    """Return the average pooling of ``a`` with its fixed weights raised to the power ``p``."""
    m = layer.module
    mean: Tensor = m.forward(a)
    if p == 1:
        return mean
    adaptive = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
    if isinstance(m, adaptive):
        # Separable: one averaging matrix a dimension, whose entries 1/k are raised to p.
        n = next(i for i, kind in enumerate(adaptive, start=1) if isinstance(m, kind))
        for dim in range(-n, 0):
            eye = torch.eye(a.shape[dim], dtype=a.dtype, device=a.device)
            averaging = F.adaptive_avg_pool1d(eye, mean.shape[dim])
            a = torch.tensordot(a, averaging.pow(p), ([dim], [0])).movedim(-1, dim)
        return a
    # A window divides by some k, the same for all of its inputs: the sum of (1/k)^p a is mean * k^(1-p).
    ones = torch.ones_like(a)
    k: Tensor = _sums(m, ones) / m.forward(ones)
    return mean * k.nan_to_num(nan=1.0).pow(1 - p)


def _sums(m: Any, a: Tensor) -> Tensor:
    """Return the sums over the windows of an average pooling."""
    if isinstance(m, nn.AvgPool3d):
        return F.avg_pool3d(a, m.kernel_size, m.stride, m.padding, m.ceil_mode, divisor_override=1)
    if isinstance(m, nn.AvgPool2d):
        return F.avg_pool2d(a, m.kernel_size, m.stride, m.padding, m.ceil_mode, divisor_override=1)
    # In one dimension the divisor cannot be chosen.
    size = ((1, *m.kernel_size), (1, *m.stride), (0, *m.padding))
    return F.avg_pool2d(a.unsqueeze(-2), *size, m.ceil_mode, divisor_override=1).squeeze(-2)
