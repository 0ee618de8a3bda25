"""Read values of a GGUF file's metadata by key and type, and remember which were read."""

import math
from collections.abc import Mapping
from typing import Any

from inheritune.errors import SourceError, escape

CONFIG_FROM = "Pass --config-from with the model that the file was made from."
SAFETENSORS = "Use the safetensors repository that the file was made from."
_MISSING = object()


class Metadata:
    """The keys of one architecture: ``llama.block_count`` is asked for as ``"block_count"``."""

    def __init__(self, values: Mapping[str, Any], architecture: str) -> None:
        prefix = architecture + "."
        self.architecture = architecture
        self._values = {
            k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)
        }
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    @property
    def unread(self) -> list[str]:
        """Full names of the keys that nothing has asked for."""
        return [f"{self.architecture}.{key}" for key in self._values if key not in self._read]

    def value(self, key: str, default: Any = _MISSING) -> Any:
        """Return a value of any type; raise SourceError where it is missing without a default."""
        self._read.add(key)
        value = self._values.get(key, default)
        if value is _MISSING:
            raise SourceError(f"the GGUF file has no {self.architecture}.{key}.", CONFIG_FROM)
        return value

    def number(self, key: str, default: Any = _MISSING) -> Any:
        """Return a finite number or a truth value, with the digits that were meant.

        A file holds 1e-5 as the nearest fp32, 9.99999975e-06: the shortest decimal that is the same
        fp32 is returned.
        """
        value = self.value(key, default)
        if value is default or type(value) in (bool, int):
            return value
        if type(value) is not float or not math.isfinite(value):
            shown = escape(value, 40)
            raise SourceError(f"{self.architecture}.{key} is {shown}, not a number.", CONFIG_FROM)
        return shortest(value)

    def count(self, key: str, default: Any = _MISSING) -> Any:
        """Return a whole number, at least 1 and below 2^31."""
        value = self.value(key, default)
        if value is default:
            return value
        if type(value) is not int or not 1 <= value < 2**31:
            shown = escape(value, 40)
            raise SourceError(f"{self.architecture}.{key} is {shown}, not a count.", CONFIG_FROM)
        return value


def shortest(value: float) -> float:
    """Return the shortest decimal that has the same nearest fp32."""
    import numpy as np

    return float(str(np.float32(value)))
