"""One number with its 95 % interval, from one sample per seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy  # its submodules load when first used: stats takes most of a second

Of = Literal["mean", "median", "min", "max", "value", "slope"]
CONFIDENCE = 0.95

# The fewest samples from which each statistic has an interval. Six is the first number of samples whose range
# covers the median with probability >= 95 % (1 - 2 / 2**6 = 96.9 %); a slope's standard error needs a residual.
FEWEST: dict[Of, int] = {"mean": 2, "median": 6, "min": 1, "max": 1, "value": 1, "slope": 3}


@dataclass(frozen=True)
class Statistic:
    """A judged statistic.

    Attributes
    ----------
    value
        The statistic itself.
    low, high
        Its 95 % interval; the range of the samples for ``min`` and ``max``; the value itself for ``value``.
    n
        Number of samples (points of the fit for ``slope``).
    statistic
        Which statistic it is.
    standard_error
        Of the value; ``None`` for a range or a single value, which have none.
    """

    value: float
    low: float
    high: float
    n: int
    statistic: Of
    standard_error: float | None = None


def _array(samples: Sequence[float] | Sequence[Sequence[float]], of: Of) -> np.ndarray:
    """Return the samples as an array of numbers, or of pairs for ``slope``."""
    data = np.asarray(samples, dtype=float)
    if of == "slope" and (data.ndim != 2 or data.shape[1] != 2):
        raise ValueError("samples: a slope needs pairs [x, y]")
    if of != "slope" and data.ndim != 1:
        raise ValueError("samples: must be plain numbers")
    return data


def point(samples: Sequence[float] | Sequence[Sequence[float]], of: Of) -> float:
    """Return the statistic alone, without an interval.

    Parameters
    ----------
    samples
        Numbers; for ``slope``, pairs ``[x, y]``.
    of
        The statistic.

    Examples
    --------
    >>> point([1.0, 2.0, 6.0], "median")
    2.0
    """
    data = _array(samples, of)
    if of == "slope":
        return float(scipy.stats.linregress(data[:, 0], data[:, 1]).slope)
    if of == "value":
        (only,) = data
        return float(only)
    if of == "mean":
        return float(data.mean())
    if of == "median":
        return float(np.median(data))
    return float(data.min() if of == "min" else data.max())


def summarise(samples: Sequence[float] | Sequence[Sequence[float]], of: Of) -> Statistic:
    """Return a statistic with its 95 % interval.

    The mean has Student's t interval; the median the narrowest symmetric interval between order statistics that
    covers it with probability at least 95 % for any continuous distribution; the slope of a least-squares line
    the t interval of its standard error; ``min`` and ``max`` the range of the samples; ``value`` is one
    deterministic number.

    Parameters
    ----------
    samples
        Numbers, one per seed; for ``slope``, pairs ``[x, y]``.
    of
        The statistic.

    Returns
    -------
    Statistic

    Raises
    ------
    ValueError
        Fewer samples than the statistic's interval needs, or several where one value is meant.

    Examples
    --------
    >>> s = summarise([1.0, 2.0, 3.0, 4.0, 5.0], "mean")
    >>> round(s.value, 4), round(s.low, 4), round(s.high, 4)
    (3.0, 1.0368, 4.9632)
    >>> s = summarise([3, 1, 2, 6, 5, 4, 8, 7], "median")
    >>> s.value, s.low, s.high
    (4.5, 1.0, 8.0)
    """
    n = len(samples)
    if n < FEWEST[of] or (of == "value" and n != 1):
        needed = "exactly 1 sample" if of == "value" else f"at least {FEWEST[of]} samples"
        raise ValueError(f"samples: statistic {of!r} needs {needed}, got {n}")
    value, data = point(samples, of), _array(samples, of)
    if of == "value":
        return Statistic(value, value, value, n, of)
    if of in ("min", "max"):
        return Statistic(value, float(data.min()), float(data.max()), n, of)
    if of == "median":
        ordered = np.sort(data)
        # The largest k for which the k-th smallest and the k-th largest sample still bracket the median.
        k = max(int(scipy.stats.binom.ppf((1 - CONFIDENCE) / 2, n, 0.5)), 1)
        low, high = float(ordered[k - 1]), float(ordered[n - k])
        return Statistic(
            value, low, high, n, of, (high - low) / (2 * float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2)))
        )
    if of == "slope":
        # scipy has no error for the fit of a constant, which is exact.
        flat = np.ptp(data[:, 1]) == 0
        error, freedom = 0.0 if flat else float(scipy.stats.linregress(data[:, 0], data[:, 1]).stderr), n - 2
    else:
        error, freedom = float(data.std(ddof=1) / np.sqrt(n)), n - 1
    reach = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Statistic(value, value - reach, value + reach, n, of, error)


def control_of(samples: Sequence[float] | Sequence[Sequence[float]], of: Of) -> Statistic:
    """Return the statistic of a negative control, which may have fewer samples than an interval needs.

    Parameters
    ----------
    samples, of
        As for `summarise`; with too few samples for an interval, the value stands for it.

    Examples
    --------
    >>> control_of([3.0], "mean").low
    3.0
    """
    if of != "value" and 0 < len(samples) < FEWEST[of]:
        value = point(samples, of)
        return Statistic(value, value, value, len(samples), of)
    return summarise(samples, of)
