"""Numbers in words, as the pages print them."""

import math
import re

from implicitreg.claims import Statistic
from implicitreg.claims.rules import number

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def pretty(text: str) -> str:
    """Set numbers as print does: a true minus, powers of ten, no break before a unit.

    Examples
    --------
    >>> pretty("min 1.5e-12, range -3 to 4, at most 1e-12")
    'min 1.5×10⁻¹², range −3 to 4, at most 10⁻¹²'
    """

    def power(match: re.Match[str]) -> str:
        mantissa = "" if match[1] == "1" else f"{match[1]}×"
        return f"{mantissa}10{str(int(match[2])).translate(SUPERSCRIPT)}"

    text = re.sub(r"(?<![\w.])(\d[\d.]*)e([+-]?\d+)", power, text)
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    return text.replace(" %", "\N{NO-BREAK SPACE}%").replace("n = ", "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


def sensible(measured: Statistic) -> str:
    """Return the value with as many digits as its interval supports: at most four, at least one.

    Examples
    --------
    >>> sensible(Statistic(70.6965, 40.0, 101.0, 8, "mean", 15.0))
    '71'
    >>> sensible(Statistic(0.50003, 0.4991, 0.5009, 8, "mean", 4e-4))
    '0.5000'
    >>> sensible(Statistic(0.123456, 0.123456, 0.123456, 1, "value"))
    '0.1235'
    """
    value = measured.value
    reach = 0.0 if measured.standard_error is None else (measured.high - measured.low) / 2
    if reach <= 0 or not 1e-4 <= abs(value) < 1e7:
        return number(value)
    size = math.floor(math.log10(abs(value)))
    digits = min(max(size - math.floor(math.log10(reach)) + 2, 1), 4)
    # Zeros at the end stay: they are measured digits like any other.
    return f"{float(f'{value:.{digits}g}'):,.{max(digits - 1 - size, 0)}f}"
