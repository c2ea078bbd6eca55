"""Names of logical units: designation descriptors (SPC-4 7.8.6, VPD page 83h).

Our own units have NAA locally assigned designators (type 3h, 8 bytes), computed from the UUID of the unit, so
that the controller, the movers and the nodes agree on the name without asking each other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from backplane.errors import LocalProtocolError
from backplane.ids import Designator

DESIGNATOR_BYTES_MAX: Final = 20
"""A CSCD descriptor has room for this many bytes (extended-copy 4.3)."""

CODE_SET_BINARY: Final = 1
DESIGNATOR_TYPE_NAA: Final = 3
ASSOCIATION_LOGICAL_UNIT: Final = 0

_CODE_SETS: Final = {1: "binary", 2: "ASCII", 3: "UTF-8"}
_DESIGNATOR_TYPES: Final = {
    0: "vendor specific",
    1: "T10 vendor id",
    2: "EUI-64",
    3: "NAA",
    4: "relative target port",
    5: "target port group",
    6: "logical unit group",
    7: "MD5 logical unit",
    8: "SCSI name string",
}
_ASSOCIATIONS: Final = {0: "logical unit", 1: "target port", 2: "target device"}
_NAA_KINDS: Final = {
    2: "IEEE extended",
    3: "locally assigned",
    5: "IEEE registered",
    6: "IEEE registered extended",
}


def designator_of(uuid_hex: str) -> Designator:
    """Return the designator of the unit with this UUID (32 lower-case hex digits).

    Four bits say "NAA, locally assigned"; the other 60 are the top of SHA-256 of the UUID's text.  That any two of a
    million units share a name has a chance of less than 1 in two million.
    """
    if len(uuid_hex) != 32 or set(uuid_hex) - set("0123456789abcdef"):
        raise LocalProtocolError(f"{uuid_hex!r} is no UUID of 32 lower-case hex digits")
    digest = int.from_bytes(hashlib.sha256(uuid_hex.encode("ascii")).digest()[:8], "big")
    return Designator((0x3 << 60 | digest >> 4).to_bytes(8, "big"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Designation:
    """One designation descriptor, without the protocol identifier (meaningless for logical units)."""

    designator: bytes
    code_set: int = CODE_SET_BINARY
    association: int = ASSOCIATION_LOGICAL_UNIT
    designator_type: int = DESIGNATOR_TYPE_NAA

    def __post_init__(self) -> None:
        if len(self.designator) > 0xFF:
            raise LocalProtocolError("a designator has at most 255 bytes")
        for name, value, bits in (
            ("CODE SET", self.code_set, 4),
            ("ASSOCIATION", self.association, 2),
            ("DESIGNATOR TYPE", self.designator_type, 4),
        ):
            if not 0 <= value < 1 << bits:
                raise LocalProtocolError(f"{name} {value} does not fit {bits} bits")

    def encode(self) -> bytes:
        """Return the descriptor as it stands in VPD page 83h, and in bytes 4.. of an E4h CSCD descriptor."""
        head = bytes(
            [
                self.code_set,
                self.association << 4 | self.designator_type,
                0,
                len(self.designator),
            ]
        )
        return head + self.designator

    @classmethod
    def decode(cls, data: bytes) -> Designation | None:
        """Decode one descriptor (PIV and protocol bits ignored); None if bytes are missing."""
        if len(data) < 4 or len(data) < 4 + data[3]:
            return None
        return cls(
            code_set=data[0] & 0x0F,
            association=data[1] >> 4 & 0x03,
            designator_type=data[1] & 0x0F,
            designator=data[4 : 4 + data[3]],
        )

    def describe(self) -> str:
        """Say it in words."""
        kind = _DESIGNATOR_TYPES.get(self.designator_type, f"type {self.designator_type:X}h")
        if self.designator_type == DESIGNATOR_TYPE_NAA and self.designator:
            naa = self.designator[0] >> 4
            kind += f" {_NAA_KINDS.get(naa, f'{naa:X}h')}"
        is_text = self.code_set in (2, 3) and self.designator.isascii()
        text = repr(self.designator.decode("ascii")) if is_text else self.designator.hex()
        codes = _CODE_SETS.get(self.code_set, f"code set {self.code_set:X}h")
        owner = _ASSOCIATIONS.get(self.association, f"association {self.association}")
        return f"{kind} {text or '(empty)'} ({codes}, {owner})"
