"""What the limits of training reveal, and whether one function of the parameters explains it."""

import itertools
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import torch
from torch import Tensor

from implicitreg import checks


@dataclass(frozen=True, eq=False)
class PreferenceGraph:
    """Which candidates gradient flow chose, and which it passed over though they fit the data as well.

    Attributes
    ----------
    candidates
        The points, shape ``(n, M)``.
    edges
        Triples (chosen, rejected, data set) of indices.
    """

    candidates: Tensor
    edges: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, eq=False)
class Rationalization:
    """Whether one function of the parameters explains all choices; true if one does.

    Attributes
    ----------
    graph
        The choices.
    ranks
        A function J on the candidates that is smallest, on every data set, at the chosen one: shape ``(n,)``,
        float64; None if there is none.
    cycle
        Candidates each of which was chosen over the next, the last one being the first again; None if there is none.
    """

    graph: PreferenceGraph
    ranks: Tensor | None
    cycle: tuple[int, ...] | None

    def __bool__(self) -> bool:
        return self.ranks is not None

    def verify(self) -> bool:
        """Tell whether J respects every choice, or every step of the cycle was a choice."""
        pairs = {(chosen, rejected) for chosen, rejected, _ in self.graph.edges}
        if self.ranks is not None:
            return all(self.ranks[chosen] < self.ranks[rejected] for chosen, rejected in pairs)
        steps = self.cycle or ()
        return len(steps) > 1 and steps[0] == steps[-1] and pairs.issuperset(itertools.pairwise(steps))


def preference_graph(
    limits: Tensor, candidates: Tensor, losses: Tensor, *, atol: float = 1e-8, zero: float = 1e-16
) -> PreferenceGraph:
    """Return the preferences that the limits of training reveal.

    On data set k, training from one start ended in candidate c; every other candidate with zero loss on it was passed
    over, which is an edge from c.

    Parameters
    ----------
    limits
        Where training ended on each data set, from one start: shape ``(K, M)``, float32 or float64.
    candidates
        Points of which each limit is one, shape ``(n, M)``.
    losses
        Loss of every candidate on every data set, shape ``(K, n)``.
    atol
        Largest distance at which a limit is a candidate.
    zero
        Largest loss that is zero.

    Returns
    -------
    PreferenceGraph
        Cost: O((K + n) n M).

    Raises
    ------
    TypeError
        Not tensors of dtype float32 or float64.
    ValueError
        Shapes that do not fit, a limit that is no candidate or whose loss is not zero, two candidates that are one
        point, or a number out of range.

    Examples
    --------
    >>> p, q = torch.tensor([5.0, 2.0]), torch.tensor([6.0, 1.0])
    >>> preference_graph(torch.stack([q, p]), torch.stack([p, q]), torch.zeros(2, 2)).edges
    ((1, 0, 0), (0, 1, 1))
    """
    for name, value in (("limits", limits), ("candidates", candidates), ("losses", losses)):
        checks.matrices(value, name)
        if value.ndim != 2:
            raise ValueError(f"{name}: must have two dimensions, got {tuple(value.shape)}")
    if limits.shape[1] != candidates.shape[1]:
        raise ValueError(f"candidates: must have shape (n, {limits.shape[1]}), got {tuple(candidates.shape)}")
    if losses.shape != (len(limits), len(candidates)):
        raise ValueError(f"losses: must have shape {(len(limits), len(candidates))}, got {tuple(losses.shape)}")
    if (torch.pdist(candidates.double()) <= checks.positive(atol, "atol")).any():
        raise ValueError(f"candidates: must be further apart than atol, {atol:g}")
    # By matrix products, torch's choice for many points, distances have errors of 1e-8.
    mode = "donot_use_mm_for_euclid_dist"
    near, chosen = torch.cdist(limits.double(), candidates.double(), compute_mode=mode).min(1)
    fits = losses <= checks.positive(zero, "zero")
    edges = []
    for k, c in enumerate(chosen.tolist()):
        if near[k] > atol or not fits[k, c]:
            raise ValueError(f"limits: number {k} must be a candidate, up to {atol:g}, with zero loss on data set {k}")
        edges += [(c, other, k) for other in fits[k].nonzero().flatten().tolist() if other != c]
    return PreferenceGraph(candidates, tuple(edges))


def rationalizable(graph: PreferenceGraph) -> Rationalization:
    """Tell whether some function J of the parameters is smallest at every choice: if and only if there is no cycle.

    Parameters
    ----------
    graph
        The choices: see `preference_graph`.

    Returns
    -------
    Rationalization
        With a function, or with a cycle that rules it out. Cost: O(n + edges).

    Raises
    ------
    TypeError
        ``graph`` is no `PreferenceGraph`.
    ValueError
        An edge leads to or from no candidate.

    Notes
    -----
    Source: the strong axiom of revealed preference, Houthakker (1950).

    Examples
    --------
    >>> points = torch.eye(3)
    >>> found = rationalizable(PreferenceGraph(points, ((0, 1, 0), (1, 2, 1))))
    >>> bool(found), found.ranks
    (True, tensor([0., 1., 2.], dtype=torch.float64))
    >>> rationalizable(PreferenceGraph(points, ((0, 1, 0), (1, 0, 1)))).cycle
    (0, 1, 0)
    """
    if not isinstance(graph, PreferenceGraph):
        raise TypeError(f"graph: must be a PreferenceGraph, got {type(graph).__name__}")
    n = len(graph.candidates)
    if not all(0 <= c < n for chosen, rejected, _ in graph.edges for c in (chosen, rejected)):
        raise ValueError(f"graph: must have edges between candidates 0 ... {n - 1}, got {graph.edges}")
    sorter: TopologicalSorter[int] = TopologicalSorter(dict.fromkeys(range(n), ()))
    for chosen, rejected, _ in graph.edges:
        sorter.add(rejected, chosen)
    try:
        order = list(sorter.static_order())
    except CycleError as error:
        return Rationalization(graph, None, tuple(error.args[1]))
    ranks = torch.empty(len(order), dtype=torch.float64)
    ranks[order] = torch.arange(len(order), dtype=torch.float64)
    return Rationalization(graph, ranks, None)
