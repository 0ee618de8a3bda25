"""Reading Zstandard files: a stream that knows when its file was cut short."""

import io
import sys
from typing import Any, BinaryIO

from inheritune.errors import MissingExtraError

__all__ = ["ZstdFile", "zstd_failure"]

_READ_BYTES = 4096  # of compressed data: a bomb makes 128 MB of them at most


class ZstdFile(io.RawIOBase):
    """The content of a Zstandard file, of any number of frames.

    Args:
        raw: The compressed file.

    Raises:
        MissingExtraError: The package that decompresses it is not installed.
    """

    def __init__(self, raw: BinaryIO) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise MissingExtraError(
                f"{getattr(raw, 'name', 'a .zst file')} needs the package zstandard.",
                'Install it: pip install "inheritune[data]"',
            ) from error
        self._raw = raw
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._ready = memoryview(b"")

    def buffered(self) -> io.BufferedReader:
        """The same, with lines."""
        return io.BufferedReader(self, 1 << 16)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, target: Any) -> int:
        """Fill a buffer; 0 at the end.

        Raises:
            EOFError: The file ends within a frame.
        """
        view = memoryview(target).cast("B")
        while not self._ready:
            data = self._raw.read(_READ_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("compressed file ended before the end of its data")
                return 0
            self._ready = memoryview(self._decompress(data))
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress(self, data: bytes) -> bytes:
        parts = []
        while data:
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            parts.append(self._frame.decompress(data))
            data = b""
            if self._frame.eof:
                data = self._frame.unused_data
                self._frame = None
        return b"".join(parts)


def zstd_failure() -> type[Exception]:
    """What the package raises at broken data; where it is not loaded, nothing can."""
    module = sys.modules.get("zstandard")
    return EOFError if module is None else module.ZstdError
