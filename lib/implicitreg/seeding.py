"""Independent random generators for the members of an ensemble."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from implicitreg import checks


def generators(seed: int, n: int) -> list[torch.Generator]:
    """Return ``n`` independent CPU generators, member ``i`` seeded by ``numpy.random.SeedSequence([seed, i])``.

    Two runs with different seeds share no member, and a run with more members keeps the first ones.

    Parameters
    ----------
    seed
        Seed of the run, >= 0.
    n
        Number of members, >= 1.

    Returns
    -------
    list of torch.Generator

    Raises
    ------
    ValueError
        ``seed`` or ``n`` is out of range.

    Examples
    --------
    >>> a, b = generators(0, 2)
    >>> torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b))
    False
    """
    checks.integer(seed, "seed", 0)
    checks.integer(n, "n", 1)
    words = [np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0] for i in range(n)]
    return [torch.Generator().manual_seed(int(word)) for word in words]


def ensemble(draw: Callable[[torch.Generator], Tensor], seed: int, n: int) -> Tensor:
    """Return ``n`` independent draws, stacked: member ``i`` is drawn with generator ``i`` of `generators`.

    Parameters
    ----------
    draw
        Takes a generator and returns a tensor, of the same shape each time.
    seed
        Seed of the run, >= 0.
    n
        Number of members, >= 1.

    Returns
    -------
    Tensor
        Shape ``(n, ...)``.

    Raises
    ------
    ValueError
        ``seed`` or ``n`` is out of range.

    Examples
    --------
    >>> ensemble(lambda generator: torch.rand(2, 3, generator=generator), seed=0, n=5).shape
    torch.Size([5, 2, 3])
    """
    return torch.stack([draw(generator) for generator in generators(seed, n)])
