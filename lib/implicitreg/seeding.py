"""Independent random generators for the members of an ensemble."""

import numpy as np
import torch

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
