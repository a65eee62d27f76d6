"""Passes of a network over samples for the measures: outputs that are checked, and what their graphs hold."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from implicitreg import checks


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
    """Turn a RuntimeError into a ValueError that blames the inputs."""
    return blaming(f"x: of shape {tuple(x.shape)} and {x.dtype} does not fit the model")


def run(network: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """Return the outputs of a network for some samples, shape ``(n, ...)``.

    Raises
    ------
    ValueError
        The network does not take the inputs, or does not return finite numbers for each of them.
    """
    with misfit(x):
        z = network(x)
    if not isinstance(z, Tensor) or not z.ndim or len(z) != len(x):
        got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"model: outputs must have shape (n, ...) with n = {len(x)} samples, got {got}")
    return checks.finite(z, "model: outputs")


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
