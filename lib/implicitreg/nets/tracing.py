"""The layers of a module with a forward of its own, found by following a symbolic input through it."""

import inspect
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812

from implicitreg.nets import layers as ly

Step: TypeAlias = tuple[str, nn.Module, int]
"""Name, module and kind of a layer, as `implicitreg.nets.layers.modules` yields them."""

_Target: TypeAlias = Callable[..., Any] | str

_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVG_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")

# Functions and methods by the layer that does the same, with the names of their arguments behind the input.
_FUNCTIONS: dict[_Target, tuple[type[nn.Module], tuple[str, ...]]] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), (nn.ReLU, ("inplace",))),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), (nn.LeakyReLU, ("negative_slope", "inplace"))),
    **dict.fromkeys((torch.flatten, "flatten"), (nn.Flatten, ("start_dim", "end_dim"))),
    **dict.fromkeys(("contiguous", "clone", torch.clone), (nn.Identity, ())),
    **dict.fromkeys((F.dropout, torch.dropout), (nn.Dropout, ("p", "training", "inplace"))),
    F.dropout1d: (nn.Dropout1d, ("p", "training", "inplace")),
    F.dropout2d: (nn.Dropout2d, ("p", "training", "inplace")),
    F.dropout3d: (nn.Dropout3d, ("p", "training", "inplace")),
    F.max_pool1d: (nn.MaxPool1d, _MAX_POOL),
    F.max_pool2d: (nn.MaxPool2d, _MAX_POOL),
    F.max_pool3d: (nn.MaxPool3d, _MAX_POOL),
    F.avg_pool1d: (nn.AvgPool1d, _AVG_POOL[:-1]),
    F.avg_pool2d: (nn.AvgPool2d, _AVG_POOL),
    F.avg_pool3d: (nn.AvgPool3d, _AVG_POOL),
    F.adaptive_avg_pool1d: (nn.AdaptiveAvgPool1d, ("output_size",)),
    F.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
    F.adaptive_avg_pool3d: (nn.AdaptiveAvgPool3d, ("output_size",)),
    F.adaptive_max_pool1d: (nn.AdaptiveMaxPool1d, ("output_size", "return_indices")),
    F.adaptive_max_pool2d: (nn.AdaptiveMaxPool2d, ("output_size", "return_indices")),
    F.adaptive_max_pool3d: (nn.AdaptiveMaxPool3d, ("output_size", "return_indices")),
}
_SUMS: tuple[_Target, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_VIEWS: tuple[_Target, ...] = ("view", "reshape", torch.reshape)
_MEANS: tuple[_Target, ...] = ("mean", torch.mean)


class Flattened(nn.Flatten):
    """A flattening of everything but the batch, of inputs that must have some number of units.

    Parameters
    ----------
    units
        How many units the flattened inputs have.
    """

    def __init__(self, units: int) -> None:
        super().__init__(1)
        self.units = units

    def forward(self, x: Tensor) -> Tensor:
        """Return the flattened inputs, or raise a RuntimeError where they have another number of units."""
        flat = super().forward(x)
        if flat.shape[1:] != (self.units,):
            raise RuntimeError(f"must have {self.units} units, got {tuple(flat.shape[1:])}")
        return flat


@dataclass(eq=False)
class _Value:
    """What a forward pass makes of its input: by layers, or by adding up two other values."""

    before: "_Value | None" = None
    """The last value that all ways from the input to this one lead through."""
    steps: tuple[Step, ...] = ()
    added: "tuple[_Value, _Value, str, nn.Module] | None" = None
    memory: Any = None
    """Values with the same memory change together where one is changed in place."""
    depth: int = 0


# What else a node of the graph may stand for.
_SHAPE, _BATCH, _CHANGED, _UNKNOWN = "shape", "number of samples", "changed", "unknown"


class _Proxy(fx.Proxy):
    def __iadd__(self, other: Any) -> Any:
        # Otherwise `x += y` would look like `x = x + y`, which leaves other names of x alone.
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(fx.Tracer):
    # Buffers that a forward pass counts with must not count this one.
    proxy_buffer_attributes = True

    def __init__(self, known: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.known = known

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.known(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        # Without hooks, which no measure runs.
        return super().call_module(m, m.forward, args, kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor | torch.ScriptObject):  # would be stored in the model
            raise TypeError("a tensor is neither its input nor the result of a layer")
        return super().create_arg(a)


def traced(network: nn.Module, name: str, kinds: Mapping[type[nn.Module], int], supported: str) -> list[Step]:
    """Return the layers of a module with a forward of its own, in evaluation mode, as `layers.modules` yields them.

    Parameters
    ----------
    network
        The module. Its forward may call supported layers, the functions that do the same, and add; it takes one
        tensor, and returns one. It is not changed; hooks are not run.
    name
        Its name, for the names of its layers.
    kinds, supported
        The layers that are supported, and how to say so.

    Returns
    -------
    list
        Name, module and kind of every layer. Where two values are added, both come from a third: the layers in
        between are the branch and the shortcut of a residual block.

    Raises
    ------
    TypeError
        The forward does something else: calls an unsupported function, depends on values or shapes, or has
        connections that are not nested.
    """

    def known(module: nn.Module) -> bool:
        return type(module).forward is not nn.Sequential.forward and (
            ly.kind_of(module, kinds) is not None or ly.built_in(module)
        )

    if "forward" in vars(network):
        raise ly.unsupported(network, name, supported, "its forward has been replaced")
    with ly.evaluation(network, random=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            optional = {
                key: given.default
                for key, given in inspect.signature(network.forward).parameters.items()
                if given.default is not given.empty
            }
            graph = _Tracer(known).trace(network, optional or None)
        except Exception as error:
            reason = f"its forward cannot be followed: {(str(error) or type(error).__name__).splitlines()[0]}"
            raise ly.unsupported(network, name, supported, reason) from error
    return _Walk(network, name, kinds, supported).through(graph)


class _Walk:
    """What each node of a graph is, node by node."""

    def __init__(self, root: nn.Module, name: str, kinds: Mapping[type[nn.Module], int], supported: str) -> None:
        self.root, self.name, self.kinds, self.supported = root, name, kinds, supported
        self.source = _Value(memory=object())
        self.env: dict[fx.Node, _Value | str] = {}
        self.used: set[int] = set()

    def through(self, graph: fx.Graph) -> list[Step]:
        """Return the layers on the way from the input to the output."""
        nodes = list(graph.nodes)
        (*_, output) = nodes
        fed = set([node for node in nodes if node.op == "placeholder"][:1])
        for node in nodes:
            if fed.intersection(node.all_input_nodes):
                fed.add(node)
        live = {output}
        for node in reversed(nodes):
            # What is computed and not used, such as a shape that is printed, does not matter.
            if node in live or (node in fed and self.in_place(node)):
                live.update((node, *node.all_input_nodes))
        for node in nodes:
            if node.op == "placeholder":
                self.env[node] = self.source if node in fed else _UNKNOWN
            elif node.op != "output" and node in live:
                self.env[node] = self.made(node) if node in fed else _UNKNOWN
        returned = output.args[0]
        if not isinstance(returned, fx.Node) or not isinstance(self.env[returned], _Value):
            raise self.refused(output, "returns something else than one tensor")
        return self.between(self.source, self.value(returned, output))

    def made(self, node: fx.Node) -> _Value | str:
        """Return what a node stands for."""
        target, args, kwargs = node.target, node.args, node.kwargs
        if node.op == "call_module":
            module = self.root.get_submodule(str(target))
            name = self.path(str(target))
            if len(node.all_input_nodes) != 1 or len(args) + len(kwargs) != 1:
                raise self.refused(node, f"calls {name!r} with more than one argument")
            steps = tuple(ly.modules(module, name, self.kinds, self.supported))
            return self.layer(node, steps, alias=isinstance(module, nn.Flatten))
        if target == "size" or (target is getattr and args[1] == "shape"):
            dims = (*args[1:], *kwargs.values())
            return _SHAPE if target != "size" or not dims else _BATCH if dims == (0,) else _UNKNOWN
        if target is operator.getitem and isinstance(args[0], fx.Node) and self.env[args[0]] == _SHAPE:
            return _BATCH if args[1] == 0 else _UNKNOWN
        if target in _SUMS:
            return self.sum(node)
        if target in _VIEWS:
            return self.view(node)
        if target in _MEANS:
            return self.mean(node)
        if target in _FUNCTIONS:
            return self.function(node)
        raise self.refused(node, f"calls {_called(node)}")

    def value(self, argument: Any, node: fx.Node) -> _Value:
        """Return the value of an argument of a node."""
        found = self.env.get(argument) if isinstance(argument, fx.Node) else None
        if found == _CHANGED:
            raise self.refused(node, "changes in place what it uses elsewhere")
        if not isinstance(found, _Value):
            raise self.refused(node, f"calls {_called(node)} with what no layer returned")
        return found

    def layer(self, node: fx.Node, steps: tuple[Step, ...], alias: bool = False) -> _Value:
        """Return what layers make of the only input of a node."""
        value = self.value(node.all_input_nodes[0], node)
        alias = alias or all(kind == ly.POINTWISE and not isinstance(m, nn.ReLU) for _, m, kind in steps)
        changed = self.in_place(node)
        new = _Value(value, steps, None, value.memory if alias or changed else object(), value.depth + 1)
        return self.replaced(value, new) if changed else new

    def replaced(self, old: _Value, new: _Value) -> _Value:
        """Let what stood for a value that was changed in place stand for what it became."""
        for node, value in self.env.items():
            if value is old:
                self.env[node] = new
            elif isinstance(value, _Value) and value.memory is old.memory:
                self.env[node] = _CHANGED
        return new

    def sum(self, node: fx.Node) -> _Value:
        if len(node.args) != 2 or any(key != "alpha" or value != 1 for key, value in node.kwargs.items()):
            raise self.refused(node, f"calls {_called(node)} with other arguments than two tensors")
        one, other = (self.value(argument, node) for argument in node.args)
        before = one
        beside = other
        while before is not beside:
            if before.depth >= beside.depth:
                assert before.before is not None
                before = before.before
            else:
                assert beside.before is not None
                beside = beside.before
        changed = self.in_place(node)
        name, module = self.place(node)
        memory = one.memory if changed else object()
        new = _Value(before, (), (one, other, name, module), memory, before.depth + 1)
        return self.replaced(one, new) if changed else new

    def view(self, node: fx.Node) -> _Value:
        """Return a flattening of everything but the batch, which is all that a view may be."""
        sizes: Any = (*node.args[1:], *node.kwargs.values())
        if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
            (sizes,) = sizes
        if len(sizes) == 2:
            first, units = sizes
            batch = isinstance(first, fx.Node) and self.env.get(first) == _BATCH
            # With as many rows as there are, the units must be those of one input.
            if isinstance(units, int) and (batch or first == -1):
                flat = nn.Flatten() if units == -1 else Flattened(units)
                return self.layer(node, (self.step(node, flat, nn.Flatten),), alias=True)
        raise self.refused(node, f"calls {_called(node)} other than to flatten everything but the batch")

    def mean(self, node: fx.Node) -> _Value:
        """Return an average over all positions, which is all that a mean may be."""
        bound = _bound(node, ("dim", "keepdim"))
        dims = bound.get("dim")
        pools = {(2, 3): nn.AdaptiveAvgPool2d, (2, 3, 4): nn.AdaptiveAvgPool3d}
        pool = pools.get(tuple(sorted(dims))) if isinstance(dims, tuple | list) else None
        if pool is None or set(bound) - {"dim", "keepdim"}:
            raise self.refused(node, f"calls {_called(node)} other than over all positions, as in mean((2, 3))")
        steps = [self.step(node, pool(1))]
        if not bound.get("keepdim"):
            steps.append(self.step(node, nn.Flatten()))
        return self.layer(node, tuple(steps))

    def function(self, node: fx.Node) -> _Value:
        layer, names = _FUNCTIONS[node.target]
        bound = _bound(node, names)
        if len(node.all_input_nodes) != 1 or set(bound) - set(names):
            raise self.refused(node, f"calls {_called(node)} with arguments that are no constants")
        bound.pop("inplace", None)
        if "training" in names:
            if bound.pop("training", True):
                raise self.refused(node, f"calls {_called(node)}, which stays active in evaluation mode")
        elif layer is nn.Flatten and bound.setdefault("start_dim", 0) < 1:
            raise self.refused(node, f"calls {_called(node)} other than with a start_dim >= 1")
        alias = layer is nn.Flatten or node.target == "contiguous"
        value = self.layer(node, (self.step(node, layer(**bound)),), alias)
        if node.target in ("clone", torch.clone):
            value.memory = object()
        return value

    def step(self, node: fx.Node, module: nn.Module, like: type[nn.Module] | None = None) -> Step:
        kind = self.kinds.get(like or type(module))
        if kind is None:
            raise self.refused(node, f"calls {_called(node)}")
        name, _ = self.place(node)
        return f"{name}.{node.name}" if name else node.name, module, kind

    def in_place(self, node: fx.Node) -> bool:
        """Whether a node changes its first argument."""
        if node.op == "call_module":
            return bool(getattr(self.root.get_submodule(str(node.target)), "inplace", False))
        name = str(getattr(node.target, "__name__", node.target))
        changes = name.endswith("_") and not name.endswith("__")
        given = _bound(node, _FUNCTIONS[node.target][1]) if node.target in _FUNCTIONS else node.kwargs
        return changes or node.target is operator.iadd or bool(given.get("inplace")) or "out" in given

    def between(self, first: _Value, last: _Value) -> list[Step]:
        """Return the layers on the way from one value to another."""
        found: list[list[Step]] = []
        while last is not first:
            if id(last) in self.used:
                raise ly.unsupported(
                    self.root, self.name, self.supported, "its forward has skip connections that are not nested"
                )
            self.used.add(id(last))
            assert last.before is not None
            if last.added is None:
                found.append(list(last.steps))
            else:
                one, other, name, module = last.added
                # The longer way is the branch.
                shortcut, branch = sorted((self.between(last.before, each) for each in (other, one)), key=len)
                start, aside, end = ((name, module, kind) for kind in (ly.BRANCH, ly.SHORTCUT, ly.JOIN))
                found.append([start, *branch, aside, *shortcut, end])
            last = last.before
        return [step for steps in reversed(found) for step in steps]

    def path(self, path: str) -> str:
        return ".".join(part for part in (self.name, path) if part)

    def place(self, node: fx.Node) -> tuple[str, nn.Module]:
        """Return the name of the module whose forward a node is in, and that module."""
        inside: Iterable[str] = node.meta.get("nn_module_stack", {})
        paths = [path for path in inside if not (node.op == "call_module" and path == node.target)]
        path = paths[-1] if paths else ""
        return self.path(path), self.root.get_submodule(path)

    def refused(self, node: fx.Node, reason: str) -> TypeError:
        name, module = self.place(node)
        return ly.unsupported(module, name, self.supported, f"its forward {reason}")


def _called(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls."""
    return re.sub(r"_\d+$", "", node.name)


def _bound(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments behind the first by name; those too many by their number."""
    given = node.args[1:]
    if node.target in _MEANS and len(given) > 1 and all(isinstance(each, int) for each in given):
        given = (given,)
    return {**{names[i] if i < len(names) else str(i): each for i, each in enumerate(given)}, **node.kwargs}
