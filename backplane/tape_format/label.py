"""The ANSI volume label: 80 bytes that any tape software recognises (ANSI X3.27, ISO 1001).

More may follow in the same record: ours has a text for people there (`first_record`), and others do so, too.

    0-3    "VOL1"
    4-9    volume identifier: the first six characters of the barcode
    10     accessibility: space, no restriction
    24-36  implementation identifier: "SDV"
    37-50  owner identifier: "SDV"
    79     version of the label standard: "4"

All else is spaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from backplane.errors import VolumeError

VOL1_BYTES: Final = 80
OWNER: Final = "SDV"
_IDENTIFIER_CHARACTERS: Final = 6
_PRINTABLE: Final = frozenset(range(0x20, 0x7F))


@dataclass(frozen=True, slots=True, kw_only=True)
class Vol1:
    """What a VOL1 label says."""

    identifier: str
    implementation: str
    owner: str
    version: str

    @property
    def is_ours(self) -> bool:
        """Whether this program wrote the label."""
        return self.owner == OWNER and self.implementation == OWNER


def encode_vol1(tag: str) -> bytes:
    """Return the label of the cartridge with this barcode."""
    if not (1 <= len(tag) <= 32 and tag.isascii() and tag.isprintable()):
        raise VolumeError(f"no volume tag: {tag!r}")
    identifier = tag[:_IDENTIFIER_CHARACTERS].ljust(_IDENTIFIER_CHARACTERS)
    label = f"VOL1{identifier} {'':13}{OWNER:13}{OWNER:14}{'':28}4"
    return label.encode("ascii")


def decode_vol1(data: bytes | memoryview) -> Vol1:
    """Decode the label at the beginning of a record; raises `VolumeError` for anything that is none."""
    raw = bytes(data[:VOL1_BYTES])
    if len(raw) != VOL1_BYTES or not raw.startswith(b"VOL1"):
        raise VolumeError("no VOL1 label")
    if not _PRINTABLE.issuperset(raw):
        raise VolumeError("VOL1 label with unprintable characters")
    text = raw.decode("ascii")
    return Vol1(
        identifier=text[4:10].rstrip(),
        implementation=text[24:37].rstrip(),
        owner=text[37:51].rstrip(),
        version=text[79],
    )
