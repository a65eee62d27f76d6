"""Passes of a network over samples for the measures: outputs that are checked, and what their graphs hold."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from implicitreg import checks

# Samples on which it is tried whether something holds.
_SOME = 32


@contextmanager
def blaming(complaint: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn a RuntimeError, or another of these errors, into a ValueError that says who is to blame.

    Raises
    ------
    ValueError
        With the complaint and the error's own words.
    torch.OutOfMemoryError
        Nobody is to blame.
    """
    caught: tuple[type[Exception], ...] = (RuntimeError, *errors)
    try:
        yield
    except caught as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(f"{complaint}: {error}") from error


def misfit(x: Tensor) -> AbstractContextManager[None]:
    """Turn what a network that does not take its inputs may raise into a ValueError that blames the inputs."""
    complaint = f"x: of shape {tuple(x.shape)} and {x.dtype} does not fit the model"
    return blaming(complaint, ValueError, TypeError, LookupError, AssertionError)


def run(network: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """Return the outputs of a network for some samples, shape ``(n, ...)``.

    Raises
    ------
    TypeError
        The outputs are no real floating-point numbers.
    ValueError
        The network does not take the inputs, or does not return finite numbers for each of them.
    """
    with misfit(x):
        z = network(x)
    if not isinstance(z, Tensor) or not z.ndim or len(z) != len(x):
        got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"model: outputs must have shape (n, ...) with n = {len(x)} samples, got {got}")
    return checks.finite(checks.floating(z, "model: outputs"), "model: outputs")


def some(x: Tensor) -> Tensor:
    """Return the places of at most some dozens of samples, from the first to the last."""
    return torch.linspace(0, len(x) - 1, min(len(x), _SOME), dtype=torch.float64).long().to(x.device)


def alone(network: Callable[[Tensor], Any], x: Tensor, z: Tensor) -> Tensor:
    """Return the outputs z if the network computes them from each sample alone, and the same every time.

    Raises
    ------
    ValueError
        Those of some samples without the others are different.
    """
    picked = some(x)
    off = (run(network, x[picked]) - z[picked]).abs().max()
    # Rounding depends on how many samples are taken at once.
    if off > (1e-3 if z.dtype == torch.float32 else 1e-6) * z.abs().max():
        raise ValueError(
            "model: outputs of a sample must depend on that sample alone and be the same every time, in evaluation "
            f"mode; without the other samples they change by {off.item():.2g}"
        )
    return z


class Stateless:
    """A module as a function of its parameters and buffers; it is left as it was.

    Attributes
    ----------
    parameters, buffers
        Those of the module by name, each once.

    Raises
    ------
    TypeError
        The module cannot be called with others.
    """

    def __init__(self, model: nn.Module) -> None:
        if isinstance(model, nn.DataParallel):
            raise TypeError("model: must not be a DataParallel; give the module in it, model.module")
        if isinstance(model, torch.jit.ScriptModule):
            raise TypeError("model: must be the Python module, not one that torch.jit made of it")
        self.model = model
        self.parameters = dict(model.named_parameters())
        self.buffers = dict(model.named_buffers())
        names = {id(t): name for name, t in (*self.parameters.items(), *self.buffers.items())}
        # Each module once: torch gives one that is there twice not its own tensors back, but the others.
        self._places = {
            f"{path}.{key}" if path else key: names[id(t)]
            for path, part in model.named_modules()
            for key, t in (*part._parameters.items(), *part._buffers.items())
            if t is not None
        }

    def __call__(self, named: Mapping[str, Tensor], x: Tensor) -> Any:
        """Return the outputs with these parameters and buffers, by name, in place of its own."""
        everywhere = {place: named[name] for place, name in self._places.items()}
        return functional_call(self.model, everywhere, (x,), tie_weights=False)


def held(graph: Callable[[], Any], leaves: Iterable[Tensor]) -> int:
    """Return the bytes that are kept for the backward pass of what a function computes, without some tensors' own."""
    kept: dict[int, int] = {}

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return saved

    with saved_tensors_hooks(keep, lambda saved: saved):
        alive = graph()  # so that no storage is used twice
    del alive
    for leaf in leaves:
        kept.pop(leaf.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def ordinary(tensor: Tensor) -> Tensor:
    """Return a tensor without its graph that autograd can save: one made in inference mode it cannot."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()
