"""Which files of a map are meant: patterns that pick, and patterns that take out again.

A directory that is picked picks everything below it; what an exclude means is out, with everything below it, and no
pattern brings it back.  Without patterns everything is picked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from backplane.errors import UsageError
from backplane.file_map.model import FileRow, Kind
from backplane.file_map.pattern import AnyOf, Pattern

PATTERNS_MAX: Final = 256
_FIELDS: Final = frozenset(("paths", "excludes"))


class Selection:
    """A choice of files, as an operator wrote it."""

    __slots__ = ("_excluded", "_picked", "excludes", "paths")

    def __init__(self, paths: tuple[str, ...] = (), excludes: tuple[str, ...] = ()) -> None:
        """Compile; raises `UsageError` for a pattern that means nothing, and for too many."""
        if len(paths) + len(excludes) > PATTERNS_MAX:
            raise UsageError(f"more than {PATTERNS_MAX} patterns")
        self.paths = paths
        self.excludes = excludes
        self._picked = AnyOf(map(Pattern, paths)) if paths else None
        self._excluded = AnyOf(map(Pattern, excludes)) if excludes else None

    @property
    def is_everything(self) -> bool:
        """Tell whether nothing was chosen."""
        return self._picked is None and self._excluded is None

    def picks(self, row: FileRow) -> bool:
        """Tell whether a row, of whatever kind, is meant."""
        is_directory = row.kind == Kind.DIRECTORY
        if self._picked is not None and not self._picked.picks(row.path, is_directory=is_directory):
            return False
        return self._excluded is None or not self._excluded.picks(
            row.path, is_directory=is_directory
        )

    def to_json(self) -> dict[str, list[str]]:
        """Return the patterns, to be stored or sent."""
        return {"paths": list(self.paths), "excludes": list(self.excludes)}

    @classmethod
    def from_json(cls, value: object) -> Selection:
        """Return the selection that `to_json` described; raises `UsageError` for anything else."""
        if not isinstance(value, Mapping) or value.keys() != _FIELDS:
            raise UsageError("a selection has `paths` and `excludes`")
        for texts in value.values():
            if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
                raise UsageError("the patterns of a selection are texts")
        return cls(tuple(value["paths"]), tuple(value["excludes"]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selection) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.paths, self.excludes))

    def __repr__(self) -> str:
        return f"Selection(paths={self.paths!r}, excludes={self.excludes!r})"
