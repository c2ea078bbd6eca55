"""What a person may have on a volume, and what is different a day later."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import stat
from pathlib import Path
from typing import Final, NamedTuple

from backplane.units import KIB, MIB

DATA: Final = "docs/deep/er/data.bin"
SECOND_NAME: Final = "links/second"
SYMLINK: Final = "links/soft"
LARGE: Final = "large"
SPARSE: Final = "sparse"
TINY: Final = "tiny"
SCATTERED: Final = "scattered"
NOTED: Final = "docs/readme.txt"
REMOVED: Final = "names/with space"
NOTE: Final = ("user.note", b"kept as it is")
PIECE_BYTES: Final = 4 * KIB
CHANGED_AT: Final = 600 * KIB
"""Where the large file is overwritten, in the middle and at a block of every file system."""

_WRITTEN_S: Final = 1_700_000_000
"""Even: FAT keeps times in steps of two seconds."""


class Facts(NamedTuple):
    """What everybody can see of a file."""

    size: int
    digest: str


def plant(root: Path) -> None:
    """Fill a folder with what a person may have."""
    chance = random.Random(40)
    contents = {
        NOTED: b"Read me before anything else.\n" * 3,
        DATA: chance.randbytes(300_007),
        "docs/empty": b"",
        "names/\xe4 \xf6 \xfc.txt": b"umlauts",
        "names/" + "n" * 180: b"a long name",
        REMOVED: chance.randbytes(5000),
        LARGE: chance.randbytes(1_500_000),
        TINY: b"twenty bytes, roughly",
        SCATTERED: chance.randbytes(96 * KIB),
    }
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    with (root / SPARSE).open("wb") as file:
        for at in (0, MIB, 3 * MIB - 5000):
            file.seek(at)
            file.write(chance.randbytes(5000))
    (root / "links").mkdir()
    os.link(root / DATA, root / SECOND_NAME)
    (root / SYMLINK).symlink_to("../docs/readme.txt")
    (root / NOTED).chmod(0o640)
    with contextlib.suppress(OSError):  # not everybody's temporary folder keeps attributes
        os.setxattr(root / NOTED, *NOTE)
    os.utime(root / LARGE, (_WRITTEN_S, _WRITTEN_S))
    os.utime(root / DATA, (_WRITTEN_S + 2, _WRITTEN_S + 2))
    os.utime(root / NOTED, (_WRITTEN_S + 4, _WRITTEN_S + 4))


def plant_more(root: Path) -> None:
    """Fill a folder with what comes later."""
    chance = random.Random(41)
    (root / "new").mkdir(parents=True)
    (root / "new" / "added.txt").write_bytes(b"I was not here yesterday.\n")
    (root / "new" / "added.bin").write_bytes(chance.randbytes(120_000))


def changed_piece() -> bytes:
    """Return what the middle of the large file is overwritten with."""
    return random.Random(42).randbytes(PIECE_BYTES)


def facts_of(root: Path) -> dict[str, Facts]:
    """Say what regular files there are, by path."""
    found = {}
    for path in sorted(root.rglob("*")):
        if stat.S_ISREG(path.lstat().st_mode):
            content = path.read_bytes()
            found[str(path.relative_to(root))] = Facts(
                len(content), hashlib.sha256(content).hexdigest()
            )
    return found


def old_piece() -> bytes:
    """Return what is in the middle of the large file at first."""
    chance = random.Random(40)
    for count in (300_007, 5000):
        chance.randbytes(count)
    return chance.randbytes(1_500_000)[CHANGED_AT : CHANGED_AT + PIECE_BYTES]
