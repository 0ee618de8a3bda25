"""Show options in --help by words, where typer would show Python's types."""

from typing import Any

from typer import core

# What stands for a value whose option names none.
_WORDS = {"int": "N", "float": "NUMBER", "Path": "PATH", "str": "TEXT"}


def plain_types() -> None:
    """Replace ``<bool>`` by nothing, ``<int range>`` by N, and so on, in every --help."""
    shared = {"_get_number_range_help_str": _limits}
    argument = {"display_type_rich": _of_argument, "_usage_display_name": _in_usage}
    option = {"display_type_rich": _of_option}
    for kind, methods in ((core.TyperArgument, argument), (core.TyperOption, option)):
        for name, method in (shared | methods).items():
            setattr(kind, name, method)


def _of_argument(argument: Any, ctx: Any) -> str:
    return ""  # its name says it


def _of_option(option: Any, ctx: Any) -> str:
    if option.metavar is not None or option.is_flag:
        return option.metavar or ""
    return _WORDS.get(option.bare_type().removeprefix("list[").removesuffix("]"), "VALUE")


def _limits(parameter: Any) -> str | None:
    least, most = getattr(parameter, "min", None), getattr(parameter, "max", None)
    if least is not None and most is not None:
        return f"{least} to {most}"
    return None if least is None else f"at least {least}"


def _in_usage(argument: Any) -> str:
    name = str(argument.display_name_raw)
    return name if argument.required or name.startswith("[") else f"[{name}]"
