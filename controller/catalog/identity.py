"""Which catalog belongs into a state folder: a small file beside it that remembers its UUID.

A catalog that is deleted, or another one in its place, would otherwise look like a first start: an empty catalog that
calls all cartridges foreign and begins to count at one.  The file says what was here, and the start is refused with the
recipe.  While the UUID changes (`TakeStore`), it names both.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from backplane.errors import MediumError, RefusedError

NAME: Final = "catalog-identity"
FILE_BYTES_MAX: Final = 4096
_UUID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)

RECIPE: Final = (
    "put the catalog back; or, if it is lost, start once with `{command}`, then "
    "`ctl catalog rebuild --all --wait` reads the cartridges"
)


class CatalogIdentity:
    """The file beside one catalog."""

    def __init__(self, catalog: Path, *, command: str = "controller --new-catalog") -> None:
        """`catalog` is the path of the database; `command` starts a controller with a new one."""
        self._catalog, self._command = catalog, command
        self._path = catalog.with_name(NAME)

    def stores(self) -> tuple[str, ...]:
        """Return the UUIDs that the catalog may have, none if there never was one."""
        try:
            with self._path.open("rb") as file:
                found = file.read(FILE_BYTES_MAX).decode("ascii", "replace").split()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise MediumError(f"{self._path}: {error.strerror}") from error
        if not found or not all(_UUID.fullmatch(each) for each in found):
            raise MediumError(f"{self._path} is damaged", hint="remove it if the catalog is right")
        return tuple(found)

    def require_catalog(self) -> None:
        """Raise `RefusedError` if there was a catalog here and now there is none."""
        if self.stores() and not self._has_catalog():
            raise RefusedError(
                f"catalog {self._catalog} is gone", hint=RECIPE.format(command=self._command)
            )

    def begin_anew(self) -> None:
        """Let an empty catalog come into being in place of one that is lost; raises `RefusedError` if it is there."""
        if self._has_catalog():
            raise RefusedError(
                f"there is a catalog {self._catalog}",
                hint="start without --new-catalog; `ctl catalog rebuild --all --wait` reads into it what it lacks. "
                "If it is to be given up, move it away first",
            )
        try:
            # What is left of the old one's log would be taken for the new one's.
            log = self._catalog.with_name(f"{self._catalog.name}-wal")
            if log.exists():
                log.rename(log.with_name(f"{log.name}.lost"))
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise MediumError(f"{error.filename}: {error.strerror}") from error

    def check(self, store: str) -> None:
        """Raise `RefusedError` unless the catalog that was opened is the one that belongs here."""
        known = self.stores()
        if known and store not in known:
            raise RefusedError(
                f"catalog {self._catalog} is another one ({store}) than was here before ({known[0]})",
                hint=f"put the right one back, or remove {self._path} if this one is meant",
            )

    def remember(self, *stores: str) -> None:
        """Write the file, durably: the UUIDs that the catalog may have from now on."""
        if self._path.exists() and self.stores() == stores:
            return
        fresh = self._path.with_name(f".{NAME}.new")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write("".join(f"{store}\n" for store in stores).encode("ascii"))
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise MediumError(f"{self._path}: {error.strerror}") from error

    def _has_catalog(self) -> bool:
        # An empty file is what is left of a catalog that was cut off, or a database that never was one.
        return self._catalog.exists() and self._catalog.stat().st_size > 0
