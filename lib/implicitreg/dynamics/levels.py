"""Loss levels: the coordinate along which a flow and a descent are sampled alike."""

import torch
from torch import Tensor


def decreasing(losses: Tensor | list[float], start: Tensor) -> Tensor:
    """Return loss levels as a float64 tensor if they are positive, strictly decreasing, and none above the start.

    Parameters
    ----------
    losses
        Shape ``(T,)``.
    start
        Loss of every member at the start.

    Raises
    ------
    ValueError
        They are not.
    """
    try:
        levels = torch.as_tensor(losses, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"losses: must be a sequence of numbers, got {losses!r}") from None
    if levels.ndim != 1 or not len(levels) or not (levels > 0).all() or not (levels.diff() < 0).all():
        raise ValueError("losses: must be a sequence of positive, strictly decreasing numbers, at least one")
    if levels[0] > start.min():
        raise ValueError(
            f"losses: must start at or below the loss at the start, {start.min():.6g}, got {levels[0]:.6g}"
        )
    return levels
