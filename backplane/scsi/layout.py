"""Byte layouts as tables: one `Field` per integer, read and written by the same description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Field:
    """Where one integer stands: `bits` bits from `low_bit` up, in the `size` bytes at `byte` (big-endian)."""

    name: str
    byte: int
    size: int
    bits: int
    low_bit: int = 0
    is_signed: bool = False
    is_key: bool = False

    @property
    def is_flag(self) -> bool:
        """A single bit: a truth value."""
        return self.bits == 1

    def holds(self, value: int) -> bool:
        """Say whether the field has room for the value."""
        low = -(1 << self.bits - 1) if self.is_signed else 0
        return low <= value < low + (1 << self.bits)

    def put(self, target: bytearray, value: int) -> None:
        """Write the value over zeros."""
        assert self.holds(value), self.name
        span = slice(self.byte, self.byte + self.size)
        raw = (value & (1 << self.bits) - 1) << self.low_bit
        target[span] = (int.from_bytes(target[span], "big") | raw).to_bytes(self.size, "big")

    def get(self, data: bytes) -> int | bool:
        """Read the value; the other bits are somebody else's or reserved."""
        raw = int.from_bytes(data[self.byte : self.byte + self.size], "big") >> self.low_bit
        raw &= (1 << self.bits) - 1
        if self.is_flag:
            return bool(raw)
        return raw - (1 << self.bits) if self.is_signed and raw >> self.bits - 1 else raw

    def shown(self, value: int) -> int | str:
        """Return the value for people and JSON: reservation keys are hex strings."""
        return f"{value:0{2 * self.size}x}" if self.is_key else int(value)


Layout: TypeAlias = tuple[Field, ...]


def whole(name: str, byte: int, size: int, *, is_key: bool = False) -> Field:
    """Describe an unsigned integer of whole bytes."""
    return Field(name, byte, size, 8 * size, is_key=is_key)


def flag(name: str, byte: int, *, bit: int = 0) -> Field:
    """Describe one bit."""
    return Field(name, byte, 1, 1, low_bit=bit)


def write_fields(layout: Layout, size: int, values: Mapping[str, int]) -> bytearray:
    """Return `size` bytes with all fields of the layout; reserved bytes are zero."""
    target = bytearray(size)
    for field in layout:
        field.put(target, values[field.name])
    return target


def read_fields(layout: Layout, data: bytes) -> dict[str, int]:
    """Return all fields of the layout by name."""
    return {field.name: field.get(data) for field in layout}


def offset_of(layout: Layout, name: str) -> int:
    """Return the byte at which a field starts, for field pointers."""
    return next(field.byte for field in layout if field.name == name)
