"""Files made in a folder that has others, and others who use it: nothing that exists is touched.

Folders that were there keep their attributes; a name that is taken stays what it is, and the file is listed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from backplane.errors import RefusedError
from backplane.file_map.model import FileRow, FileSystem
from controller.cli.file_folder import FOLDER_FLAGS, FileFolder


class PopulatedFolder(FileFolder):
    """A folder into which files are restored."""

    def __init__(self, folder: Path, file_systems: Iterable[FileSystem] = ()) -> None:
        """Open the folder; raises `RefusedError` if it is not there."""
        self._new: set[bytes] = set()
        super().__init__(folder, file_systems)

    def _open(self, folder: Path) -> tuple[int, int]:
        try:
            return os.open(folder, FOLDER_FLAGS), 0
        except OSError as error:
            raise RefusedError(
                f"cannot make files in {folder}: {error.strerror}",
                hint="name a folder that is there",
            ) from error

    def close(self) -> None:
        """Close the folder, which stays as it is."""
        self._forget_parent()
        os.close(self._root)

    def has(self, path: bytes) -> bool:
        """Tell whether a name is taken; makes the folders on the way to it, raises `OSError` if they cannot be."""
        folder, name = self._folder_of(path)
        try:
            os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def adopt(self, row: FileRow, *, attributes_lost: int) -> None:
        """Count a file that somebody else has made here, so that others can be linked to it."""
        self.files += 1
        self.file_bytes += row.size
        self.attributes_lost += attributes_lost
        if row.links > 1:
            self._made[self._hard_links.key(row)] = row.path

    def remove(self, path: bytes) -> None:
        """Remove a temporary file that nobody is left to remove."""
        folder, name = self._folder_of(path)
        with suppress(OSError):
            os.unlink(name, dir_fd=folder)

    def _walk(self, path: bytes) -> int:
        at = os.dup(self._root)
        walked = []
        try:
            for name in path.split(b"/") if path else ():
                walked.append(name)
                try:
                    os.mkdir(name, 0o700, dir_fd=at)
                except FileExistsError:
                    pass
                else:
                    self._new.add(b"/".join(walked))
                below = os.open(name, FOLDER_FLAGS, dir_fd=at)
                os.close(at)
                at = below
        except BaseException:
            os.close(at)
            raise
        return at

    def _finish_folder(self, row: FileRow) -> None:
        if row.path in self._new:
            super()._finish_folder(row)
