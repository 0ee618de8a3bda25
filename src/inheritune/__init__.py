"""Inheritune: make a large language model small by inheriting its first layers and training on."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from inheritune.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    # Names come from inheritune.api when they are first used: the import itself loads nothing.
    if name != "__all__" and name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("inheritune.api"), name)


def __dir__() -> list[str]:
    from importlib import import_module

    return ["__version__", *import_module("inheritune.api").__all__]
