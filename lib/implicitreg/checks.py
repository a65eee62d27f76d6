"""What every routine of the library asks of its arguments, with one wording for each complaint."""

import math
from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor


def floating(value: Tensor, name: str) -> Tensor:
    """Return ``value`` if it is a tensor of dtype float32 or float64.

    Raises
    ------
    TypeError
        It is not, or it is sparse.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: must have dtype float32 or float64, got {str(value.dtype).removeprefix('torch.')}")
    if value.layout is not torch.strided:
        raise TypeError(f"{name}: must be dense, got layout {str(value.layout).removeprefix('torch.')}")
    return value


def matrices(value: Tensor, name: str) -> Tensor:
    """Return ``value`` if it is a finite floating-point tensor of shape ``(..., d, d')``.

    Raises
    ------
    TypeError
        Not a tensor, or not of dtype float32 or float64.
    ValueError
        Fewer than two dimensions, an empty matrix, or an entry that is not finite.
    """
    floating(value, name)
    if value.ndim < 2 or 0 in value.shape[-2:]:
        raise ValueError(f"{name}: must have shape (..., d, d') with d, d' >= 1, got {tuple(value.shape)}")
    return finite(value, name)


def finite(value: Tensor, name: str) -> Tensor:
    """Return ``value`` if all of its entries are finite.

    Raises
    ------
    ValueError
        One is NaN or infinite.
    """
    # The sum is finite unless an entry is not, or it overflows: five times as fast as asking every entry.
    if not math.isfinite(value.detach().sum().item()) and not torch.isfinite(value).all():
        raise ValueError(f"{name}: must be finite, got NaN or infinity")
    return value


def located(value: Tensor, device: torch.device, name: str) -> Tensor:
    """Return ``value`` if it is on the device of the network that it is given to.

    Raises
    ------
    ValueError
        It is on another one.
    """
    if value.device != device:
        raise ValueError(f"{name}: must be on {device}, where the model is, got {value.device}")
    return value


def broadcastable(shape: Sequence[int], other: Sequence[int], name: str, other_name: str) -> None:
    """Refuse leading dimensions of one argument that do not broadcast with those of another.

    Raises
    ------
    ValueError
        They do not.
    """
    try:
        np.broadcast_shapes(tuple(shape), tuple(other))  # torch's own imports sympy, which takes half a second
    except ValueError:
        raise ValueError(
            f"{name}: must have leading dimensions that broadcast with {tuple(other)} of {other_name}, "
            f"got {tuple(shape)}"
        ) from None


def random(value: torch.Generator, name: str) -> torch.Generator:
    """Return ``value`` if it is a generator; without one, draws would be neither seeded nor independent.

    Raises
    ------
    TypeError
        It is not.
    """
    if not isinstance(value, torch.Generator):
        raise TypeError(f"{name}: must be a torch.Generator, got {type(value).__name__}")
    return value


def integer(value: int, name: str, least: int) -> int:
    """Return ``value`` if it is an integer of at least ``least``.

    Raises
    ------
    ValueError
        It is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}: must be an integer >= {least}, got {value!r}")
    return int(value)


def dimensions(value: Sequence[int], name: str, order: int | None = None) -> tuple[int, ...]:
    """Return ``value`` as a tuple if it holds the dimensions of a tensor of some order, each >= 1.

    Raises
    ------
    ValueError
        It does not: no sequence, or not of length ``order`` (of at least two where that is None).
    """
    if not isinstance(value, tuple | list | torch.Size) or (len(value) != order if order else len(value) < 2):
        raise ValueError(f"{name}: must be a sequence of {order or 'at least 2'} integers >= 1, got {value!r}")
    return tuple(integer(d, name, 1) for d in value)


def modes(value: Tensor, order: int | None, name: str) -> int:
    """Return the number of modes of a floating-point tensor ``(..., d_1, ..., d_N)``: ``order``, or all dimensions.

    Raises
    ------
    TypeError
        Not a tensor, or not of dtype float32 or float64.
    ValueError
        Fewer than two modes, more than there are dimensions, or a dimension 0.
    """
    floating(value, name)
    order = value.ndim if order is None else integer(order, "order", 2)
    if not 2 <= order <= value.ndim or 0 in value.shape:
        raise ValueError(
            f"{name}: must have shape (..., d_1, ..., d_N) with N >= 2 and no dimension 0, got {tuple(value.shape)}"
        )
    return order


def number(value: object) -> float:
    """Return ``value`` as a float if it is a number, else NaN, which no range holds."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan


def positive(value: float, name: str, *, infinite: bool = False) -> float:
    """Return ``value`` as a float if it is a positive number.

    Raises
    ------
    ValueError
        It is not, or it is infinite where that is not allowed.
    """
    given = number(value)
    if not given > 0 or (math.isinf(given) and not infinite):
        raise ValueError(f"{name}: must be a {'' if infinite else 'finite '}number > 0, got {value!r}")
    return given


def at_least(value: float, name: str, least: float, *, infinite: bool = False) -> float:
    """Return ``value`` as a float if it is a number of at least ``least``.

    Raises
    ------
    ValueError
        It is not, or it is infinite where that is not allowed.
    """
    given = number(value)
    if not given >= least or (math.isinf(given) and not infinite):
        raise ValueError(f"{name}: must be a {'' if infinite else 'finite '}number >= {least:g}, got {value!r}")
    return given


def per_member(value: float | Tensor, name: str, like: Tensor, *, zero: bool = False) -> Tensor:
    """Return one number > 0, or >= 0 where ``zero``, for each member of an ensemble: shape ``(len(like),)``.

    Raises
    ------
    ValueError
        A number is out of range, or their tensor has another shape.
    """
    m = len(like)
    if not isinstance(value, Tensor):
        return like.new_full((m,), at_least(value, name, 0) if zero else positive(value, name))
    if value.shape != (m,):
        raise ValueError(f"{name}: must be a number or have shape ({m},), got {tuple(value.shape)}")
    result = value.to(like)
    if not (torch.isfinite(result) & (result >= 0 if zero else result > 0)).all():
        raise ValueError(f"{name}: must be finite and {'>= 0' if zero else '> 0'} for every member")
    return result


def fraction(value: float, name: str) -> float:
    """Return ``value`` as a float if it is a number from 0 to below 1.

    Raises
    ------
    ValueError
        It is not.
    """
    if not 0 <= number(value) < 1:
        raise ValueError(f"{name}: must be a number >= 0 and < 1, got {value!r}")
    return float(value)


def share(value: float, name: str) -> float:
    """Return ``value`` as a float if it is a number from 0 to 1.

    Raises
    ------
    ValueError
        It is not.
    """
    if not 0 <= number(value) <= 1:
        raise ValueError(f"{name}: must be a number from 0 to 1, got {value!r}")
    return float(value)


def precision(value: torch.dtype, name: str) -> torch.dtype:
    """Return ``value`` if it is ``torch.float32`` or ``torch.float64``.

    Raises
    ------
    TypeError
        It is not.
    """
    if value not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: must be torch.float32 or torch.float64, got {value!r}")
    return value


def class_labels(value: Tensor, classes: int, name: str) -> Tensor:
    """Return ``value`` if it is an int64 tensor of shape ``(n,)``, ``n >= 1``, with entries from 0 to ``classes - 1``.

    Raises
    ------
    TypeError
        No int64 tensor.
    ValueError
        Another shape, no label at all, or one outside the range; fewer than two classes.
    """
    integer(classes, "classes", 2)
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        got = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: must be a torch.Tensor of dtype int64, got {got}")
    if value.ndim != 1 or not len(value):
        raise ValueError(f"{name}: must have shape (n,) with n >= 1, got {tuple(value.shape)}")
    least, most = value.aminmax()
    if least < 0 or most >= classes:
        raise ValueError(f"{name}: must lie in 0 ... {classes - 1}, got {int(least)} ... {int(most)}")
    return value


def scored(value: Tensor, scores: Tensor, name: str) -> Tensor:
    """Return ``value`` if it holds one class for each row of ``scores``, of shape ``(..., n, k)``.

    Raises
    ------
    TypeError
        ``scores`` is no tensor of dtype float32 or float64, or ``value`` is no int64 tensor.
    ValueError
        No sample, shapes that do not fit, or a label outside 0 ... k - 1.
    """
    floating(scores, "scores")
    if scores.ndim < 2 or 0 in scores.shape:
        raise ValueError(f"scores: must have shape (..., n, k) with n, k >= 1, got {tuple(scores.shape)}")
    class_labels(value.flatten() if isinstance(value, Tensor) and value.ndim else value, scores.shape[-1], name)
    below = scores.ndim - 1 - value.ndim
    if (
        below < 0
        or value.shape[-1] != scores.shape[-2]
        or any(m not in (1, n) for m, n in zip(value.shape, scores.shape[below:-1], strict=True))
    ):
        raise ValueError(
            f"{name}: must have one class for each of {tuple(scores.shape[:-1])}, got {tuple(value.shape)}"
        )
    return value
