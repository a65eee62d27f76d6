"""Labels that are not those of the data: random, noisy, or a teacher's."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from implicitreg import checks


def random_labels(n: int, classes: int, generator: torch.Generator) -> Tensor:
    """Return independent labels, uniform over the classes: nothing can be learned from them, only remembered.

    Parameters
    ----------
    n
        Number of labels, >= 1.
    classes
        Number of classes, >= 2.
    generator
        Source of randomness, on the CPU.

    Returns
    -------
    Tensor
        Shape ``(n,)``, int64, from 0 to ``classes - 1``. Put in place of true labels, a share ``1 / classes`` of them
        is right by chance.

    Raises
    ------
    TypeError, ValueError
        An argument is out of range.

    Examples
    --------
    >>> labels = random_labels(10_000, 10, torch.Generator().manual_seed(0))
    >>> labels.shape, bool((labels.bincount() - 1000).abs().max() < 150)
    (torch.Size([10000]), True)
    """
    checks.integer(n, "n", 1)
    checks.integer(classes, "classes", 2)
    checks.random(generator, "generator")
    return torch.randint(classes, (n,), generator=generator)


def noisy_labels(labels: Tensor, classes: int, share: float, generator: torch.Generator) -> Tensor:
    """Return labels of which a share is drawn anew.

    Parameters
    ----------
    labels
        Shape ``(n,)``, int64, from 0 to ``classes - 1``.
    classes
        Number of classes, >= 2.
    share
        From 0 to 1. Exactly ``round(share * n)`` labels, chosen without replacement, are drawn anew, uniformly over
        all classes: one in ``classes`` of them stays what it was.
    generator
        Source of randomness, on the CPU.

    Returns
    -------
    Tensor
        Shape ``(n,)``, int64, on the device of ``labels``, which is not changed.

    Raises
    ------
    TypeError, ValueError
        There are no labels, a label or ``share`` is outside its range, or an argument is something else.

    Examples
    --------
    >>> labels = torch.zeros(500, dtype=torch.int64)
    >>> noisy = noisy_labels(labels, 10, 0.05, torch.Generator().manual_seed(0))
    >>> 0 < int((noisy != labels).sum()) <= 25
    True
    """
    checks.class_labels(labels, classes, "labels")
    share = checks.share(share, "share")
    checks.random(generator, "generator")
    n = len(labels)
    chosen = torch.randperm(n, generator=generator)[: round(share * n)]
    noisy = labels.clone()
    drawn = torch.randint(classes, (len(chosen),), generator=generator)
    noisy[chosen.to(labels.device)] = drawn.to(labels.device)
    return noisy


def teacher_labels(teacher: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the class that a teacher gives each input: labels that a network of its size can fit without error.

    Parameters
    ----------
    teacher
        Takes inputs of shape ``(n, d)`` and returns scores of shape ``(n, k)``, ``k >= 2``. A module is called in
        evaluation mode, and left in the mode that it was in. No gradient is kept.
    x
        Inputs, shape ``(n, d)``, ``n >= 1``, float32 or float64.

    Returns
    -------
    Tensor
        Shape ``(n,)``, int64, the number of the highest score; of several that are equal, the lowest number.

    Raises
    ------
    TypeError, ValueError
        ``x`` or what the teacher returns has another dtype or shape, is empty, or is NaN or infinite.

    Notes
    -----
    Networks without biases give an input that activates no hidden unit the same score for each class: class 0.

    References
    ----------
    Labels that leave no approximation error ("censored"): Neyshabur, Tomioka & Srebro (2015), arXiv:1412.6614.

    Examples
    --------
    >>> teacher_labels(lambda x: torch.cat([x, -x], dim=1), torch.tensor([[2.0], [-1.0]])).tolist()
    [0, 1]
    """
    if not callable(teacher):
        raise TypeError(f"teacher: must be callable, got {type(teacher).__name__}")
    checks.matrices(x, "x")
    if x.ndim != 2:
        raise ValueError(f"x: must have shape (n, d), got {tuple(x.shape)}")
    training = [m for m in teacher.modules() if m.training] if isinstance(teacher, nn.Module) else []
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            scores = teacher(x)
    finally:
        for module in training:
            module.training = True
    checks.matrices(scores, "teacher(x)")
    if scores.ndim != 2 or len(scores) != len(x) or scores.shape[1] < 2:
        raise ValueError(f"teacher(x): must have shape ({len(x)}, k) with k >= 2, got {tuple(scores.shape)}")
    return scores.argmax(1)
