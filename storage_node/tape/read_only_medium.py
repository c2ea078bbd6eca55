"""A file of a cartridge that must stay as it is."""

from __future__ import annotations

import os
from pathlib import Path

from storage_node.tape.medium import FileMedium


class ReadOnlyMedium(FileMedium):
    """A file that is opened for reading only: the kernel refuses whoever would change it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def synchronise(self) -> None:
        """Nothing was written."""
