"""Format numbers for people: three digits, a unit, and a dash for an unknown value."""

from collections.abc import Callable

MISSING = "—"
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def formatted(form: str) -> Callable[[float | None], str]:
    """Make a function that formats numbers as ``form`` says, such as ``".2f"``."""
    return lambda value: MISSING if value is None else format(value, form)


def amount(value: float | None) -> str:
    """Tokens or parameters: ``950``, ``51.6K``, ``3.07M``, ``2B``."""
    if value is None:
        return MISSING
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        # 999,950 rounds to 1000K, which is 1M: half of the last digit belongs to the next unit.
        if abs(value) >= size * 0.9995:
            return f"{_three_digits(value / size)}{letter}"
    return _three_digits(value)


def exact(value: float | None) -> str:
    """A count: ``1,234``."""
    return MISSING if value is None else f"{value:,.0f}"


def epochs(value: float | None) -> str:
    """Passes over the training text: ``0.33``."""
    return MISSING if value is None else f"{value:.2f}"


def flops(value: float | None) -> str:
    """Floating point operations: ``5.0 × 10¹³``."""
    if value is None:
        return MISSING
    if abs(value) < 1e6:
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def loss(value: float | None) -> str:
    """Nats per token: ``2.093``."""
    return MISSING if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """A difference in nats per token: ``+0.110`` or ``−0.007``."""
    if value is None:
        return MISSING
    return f"{value:+.3f}".replace("-", "−")


def percent(share: float | None) -> str:
    """A share: ``93%``, ``6.7%``, ``under 0.1%``."""
    if share is None:
        return MISSING
    value = 100 * share
    if 0 < value < 0.1:
        return "under 0.1%"
    digits = 0 if abs(value) >= 9.95 or value == 0 else 1
    return f"{value:,.{digits}f}%".replace("-", "−")


def duration(seconds: float | None) -> str:
    """A time: ``4.2 s``, ``42 s``, ``3 min 32 s``, ``2 h 5 min``, ``3.1 days``."""
    if seconds is None:
        return MISSING
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
    return f"{seconds / 86_400:.1f} days"


def data_size(value: float | None) -> str:
    """Bytes: ``900 MB``."""
    if value is None:
        return MISSING
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if abs(value) >= size * 0.9995:
            return f"{_three_digits(value / size)} {unit}"
    return f"{value:.0f} bytes"


def money(value: float | None) -> str:
    """A price without its currency: ``1,234.50``, ``0.003``."""
    if value is None:
        return MISSING
    return f"{value:,.2f}" if abs(value) >= 0.095 or value == 0 else f"{value:.2g}"


def hours(value: float | None) -> str:
    """Device-hours: ``12.3``, ``0.004``."""
    return MISSING if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"
