"""Format numbers for people: three digits, a unit, and a dash for an unknown value."""

from collections.abc import Callable, Sequence
from functools import wraps

MISSING = "—"
_YEAR = 365.25  # days
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")

Formatter = Callable[[float | None], str]


def _dash_for_none(show: Callable[[float], str]) -> Formatter:
    @wraps(show)
    def formatter(value: float | None) -> str:
        return MISSING if value is None else show(value)

    return formatter


def formatted(form: str) -> Formatter:
    """Make a formatter from a format specification, such as ``".2f"``."""
    return _dash_for_none(lambda value: format(value, form))


exact = formatted(",.0f")  # a count: ``1,234``
epochs = formatted(".2f")  # passes over the training text: ``0.33``
loss = formatted(".3f")  # nats per token: ``2.093``


@_dash_for_none
def amount(value: float) -> str:
    """Format tokens or parameters: ``950``, ``51.6K``, ``3.07M``, ``2B``."""
    return _with_unit(value, ("T", "B", "M", "K")) or _three_digits(value)


@_dash_for_none
def data_size(value: float) -> str:
    """Format bytes: ``900 MB``."""
    return _with_unit(value, (" TB", " GB", " MB", " KB")) or f"{value:.0f} bytes"


@_dash_for_none
def flops(value: float) -> str:
    """Format floating point operations: ``5.0 × 10¹³``."""
    if abs(value) < 1e6:
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"


@_dash_for_none
def signed(value: float) -> str:
    """Format a difference in nats per token: ``+0.110`` or ``−0.007``."""
    return f"{value:+.3f}".replace("-", "−")


@_dash_for_none
def percent(share: float) -> str:
    """Format a share: ``93%``, ``6.7%``, ``under 0.1%``."""
    value = 100 * share
    if 0 < value < 0.1:
        return "under 0.1%"
    digits = 0 if abs(value) >= 9.95 or value == 0 else 1
    return f"{value:,.{digits}f}%".replace("-", "−")


@_dash_for_none
def duration(seconds: float) -> str:
    """Format a time: ``4.2 s``, ``3 min 32 s``, ``2 h 5 min``, ``3.1 days``, ``303 years``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s".removesuffix(" 0 s")
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 2880:
        return f"{minutes // 60} h {minutes % 60} min".removesuffix(" 0 min")
    days = seconds / 86_400
    if days < 60:
        return f"{days:.1f} days"
    if days < 2 * _YEAR:
        return f"{days / _YEAR * 12:.1f} months"
    years = days / _YEAR
    return f"{years:,.0f} years" if years >= 99.95 else f"{years:.1f} years"


@_dash_for_none
def money(value: float) -> str:
    """Format a price without its currency: ``1,234.50``, ``0.003``."""
    return f"{value:,.2f}" if abs(value) >= 0.095 or value == 0 else f"{value:.2g}"


@_dash_for_none
def hours(value: float) -> str:
    """Format device-hours: ``12.3``, ``0.004``."""
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _with_unit(value: float, units: Sequence[str]) -> str:
    """Format with the unit of 10¹², 10⁹, 10⁶ or 10³; empty for a smaller value."""
    for size, unit in zip((1e12, 1e9, 1e6, 1e3), units, strict=True):
        # 999,950 rounds to 1000K, which is 1M: half of the last digit belongs to the next unit.
        if abs(value) >= size * 0.9995:
            return f"{_three_digits(value / size)}{unit}"
    return ""


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: ``1 layer``, ``1,200 layers``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
