"""Keep what layers make of all calibration windows in a file, and some windows of it in memory."""

import tempfile
import weakref
from pathlib import Path

import torch
from torch import Tensor


class Spilled:
    """Values of N windows, (N, ...) fp32, in a file without a name, which ends with the object."""

    def __init__(self, windows: int, folder: Path | None = None) -> None:
        """Make the file.

        Args:
            folder: Where it lies; None: with the system's other temporary files.
        """
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._windows, self._shape = windows, torch.Size()
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return self._windows

    def __setitem__(self, windows: Tensor, values: Tensor) -> None:
        """Write the values of some windows, (n, ...), from whatever device.

        Raises:
            OSError: The disk is full.
        """
        self._shape = values.shape[1:]
        rows = values.detach().to("cpu", torch.float32).contiguous().numpy()
        for row, window in zip(rows, windows.tolist(), strict=True):
            self._file.seek(window * row.nbytes)
            self._file.write(row)

    def __getitem__(self, windows: Tensor) -> Tensor:
        """Read the values of some windows, (n, ...); those that were never written are anything."""
        values = torch.empty((len(windows), *self._shape))
        for row, window in zip(values.numpy(), windows.tolist(), strict=True):
            self._file.seek(window * row.nbytes)
            self._file.readinto(row)
        return values
