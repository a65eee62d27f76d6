"""The rules a measurement is held against: each accepts a region of the real line."""

import itertools
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator

from implicitreg.claims.statistics import Of


def number(value: float, digits: int = 4) -> str:
    """Return a number to 4 significant digits, as a person writes it.

    Examples
    --------
    >>> number(59067.42), number(70.6965), number(1e-12), number(2.0), number(-0.00012345)
    ('59,070', '70.7', '1e-12', '2', '-0.0001234')
    """
    if value == 0:
        return "0"
    # A tie, such as 0.84375, is broken by what the number is, not by the round-off of the machine that computed it.
    value = float(f"{value:.{max(10, digits + 3)}g}")
    if not 1e-4 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    rounded = float(f"{value:.{digits}g}")
    places = max(digits - 1 - math.floor(math.log10(abs(rounded))), 0)
    text = f"{rounded:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


class _Rule(BaseModel):
    """What all rules share: the judged statistic and why the threshold stands where it does.

    A subclass accepts the numbers between two edges; an edge may be infinite, and is itself accepted unless
    ``strict``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: Of
    reason: str = Field(min_length=1)
    # With how many digits the statistic is printed, where round-off decides the others: of 48 trainings, one may turn.
    # Nothing that is accepted hangs on it, so no claims.json has it.
    told: int | None = Field(default=None, ge=1, le=12, exclude=True)

    @property
    def edges(self) -> tuple[float, float]:
        """The lower and the upper edge of the accepted region."""
        raise NotImplementedError

    @property
    def strict(self) -> bool:
        """Whether the edges themselves are refused."""
        return False

    def meets(self, low: float, high: float) -> bool:
        """Tell whether every number of the interval from ``low`` to ``high`` is accepted."""
        bottom, top = self.edges
        return bottom < low and high < top if self.strict else bottom <= low and high <= top

    def misses(self, low: float, high: float) -> bool:
        """Tell whether no number of the interval from ``low`` to ``high`` is accepted."""
        bottom, top = self.edges
        return high <= bottom or low >= top if self.strict else high < bottom or low > top

    def distance(self, value: float) -> float:
        """Return how far ``value`` is from the nearest edge."""
        return min(abs(value - edge) for edge in self.edges)

    def words(self) -> str:
        """Return the rule as a short phrase."""
        raise NotImplementedError

    @property
    def digits(self) -> int:
        """Significant digits with which a statistic is told."""
        return self.told or 4

    def reduce(self, samples: list[Any]) -> list[Any]:
        """Return the numbers the statistic is taken of."""
        return samples


class AtLeast(_Rule):
    """The statistic is at least ``value``."""

    rule: Literal["at_least"]
    value: FiniteFloat

    @property
    def edges(self) -> tuple[float, float]:
        """The accepted region."""
        return self.value, math.inf

    def words(self) -> str:
        """Return the rule as a short phrase."""
        return f"at least {number(self.value)}"


class AtMost(_Rule):
    """The statistic is at most ``value``."""

    rule: Literal["at_most"]
    value: FiniteFloat

    @property
    def edges(self) -> tuple[float, float]:
        """The accepted region."""
        return -math.inf, self.value

    def words(self) -> str:
        """Return the rule as a short phrase."""
        return f"at most {number(self.value)}"


class Within(_Rule):
    """The statistic is within ``absolute``, or within ``relative`` times the size of ``value``."""

    rule: Literal["within"]
    value: FiniteFloat
    absolute: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    relative: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _one_tolerance(self) -> "Within":
        if (self.absolute is None) == (self.relative is None):
            raise ValueError("give exactly one of 'absolute' and 'relative'")
        if self.relative is not None and self.value == 0:
            raise ValueError("'relative' means nothing around 0: give 'absolute'")
        return self

    @property
    def edges(self) -> tuple[float, float]:
        """The accepted region."""
        reach = self.absolute if self.relative is None else self.relative * abs(self.value)
        assert reach is not None
        return self.value - reach, self.value + reach

    @property
    def digits(self) -> int:
        """Significant digits with which a statistic is told, enough to see a tenth of the tolerance."""
        reach = self.edges[1] - self.value
        return self.told or max(4, math.ceil(math.log10(max(abs(self.value) / reach, 1))) + 1)

    def words(self) -> str:
        """Return the rule as a short phrase."""
        if self.relative is not None:
            return f"within {number(100 * self.relative)} % of {number(self.value, 8)}"
        assert self.absolute is not None
        return f"{number(self.value, 8)} ± {number(self.absolute)}"


class Ordered(_Rule):
    """Each sample is a sequence whose every step goes the right way, by more than ``value``."""

    rule: Literal["ordered"]
    direction: Literal["increasing", "decreasing"]
    value: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    of: Of = "min"

    @field_validator("of")
    @classmethod
    def _a_step(cls, of: Of) -> Of:
        if of == "slope":
            raise ValueError("'slope' cannot be taken of the steps of a sequence")
        return of

    @property
    def edges(self) -> tuple[float, float]:
        """The accepted region."""
        return self.value, math.inf

    @property
    def strict(self) -> bool:
        """Whether the edges themselves are refused."""
        return True

    def words(self) -> str:
        """Return the rule as a short phrase."""
        step = f" by more than {number(self.value)} a step" if self.value else " at every step"
        return f"strictly {self.direction}{step}"

    def reduce(self, samples: list[Any]) -> list[Any]:
        """Return each sequence's smallest step, counted positive in the right direction."""
        if not all(isinstance(s, list) and len(s) > 1 for s in samples):
            raise ValueError("samples: must be sequences of at least two numbers")
        sign = 1.0 if self.direction == "increasing" else -1.0
        return [min(sign * (b - a) for a, b in itertools.pairwise(s)) for s in samples]


class Excludes(_Rule):
    """The whole interval lies above, or below, ``value``."""

    rule: Literal["excludes"]
    value: FiniteFloat
    side: Literal["above", "below"]

    @property
    def edges(self) -> tuple[float, float]:
        """The accepted region."""
        return (self.value, math.inf) if self.side == "above" else (-math.inf, self.value)

    @property
    def strict(self) -> bool:
        """Whether the edges themselves are refused."""
        return True

    def words(self) -> str:
        """Return the rule as a short phrase."""
        return f"interval wholly {self.side} {number(self.value)}"


Rule = Annotated[AtLeast | AtMost | Within | Ordered | Excludes, Field(discriminator="rule")]
