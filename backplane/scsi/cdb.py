"""Command descriptor blocks of the third-party copy commands (extended-copy section 2): 16 bytes each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from backplane.errors import LocalProtocolError
from backplane.scsi.layout import Field, Layout, read_fields, whole, write_fields
from backplane.scsi.refusal import INVALID_OPERATION_CODE, CdbError

CDB_BYTES: Final = 16


class OperationCode(IntEnum):
    """The two operation codes of the family."""

    THIRD_PARTY_COPY_OUT = 0x83
    THIRD_PARTY_COPY_IN = 0x84


_OPERATION: Final = whole("operation_code", 0, 1)
_ACTION: Final = Field("service_action", 1, 1, 5)
_ID8: Final = whole("list_identifier", 2, 1)
_ID32: Final = whole("list_identifier", 2, 4)
_TOKEN_ID: Final = whole("list_identifier", 6, 4)
_LIST_LENGTH: Final = whole("parameter_list_length", 10, 4)
_ALLOCATION: Final = whole("allocation_length", 10, 4)
_GROUP: Final = Field("group_number", 14, 1, 6)
_CONTROL: Final = whole("control", 15, 1)

_COMMANDS: Final[dict[tuple[int, int], tuple[str, Layout]]] = {
    (0x83, 0x00): ("EXTENDED COPY(LID1)", (_LIST_LENGTH,)),
    (0x83, 0x01): ("EXTENDED COPY(LID4)", (_LIST_LENGTH,)),
    (0x83, 0x10): ("POPULATE TOKEN", (_TOKEN_ID, _LIST_LENGTH, _GROUP)),
    (0x83, 0x11): ("WRITE USING TOKEN", (_TOKEN_ID, _LIST_LENGTH, _GROUP)),
    (0x83, 0x1C): ("COPY OPERATION ABORT", (_ID32,)),
    (0x84, 0x00): ("RECEIVE COPY STATUS(LID1)", (_ID8, _ALLOCATION)),
    (0x84, 0x01): ("RECEIVE COPY DATA(LID1)", (_ID8, _ALLOCATION)),
    (0x84, 0x03): ("RECEIVE COPY OPERATING PARAMETERS", (_ALLOCATION,)),
    (0x84, 0x04): ("RECEIVE COPY FAILURE DETAILS(LID1)", (_ID8, _ALLOCATION)),
    (0x84, 0x05): ("RECEIVE COPY STATUS(LID4)", (_ID32, _ALLOCATION)),
    (0x84, 0x06): ("RECEIVE COPY DATA(LID4)", (_ID32, _ALLOCATION)),
    (0x84, 0x07): ("RECEIVE ROD TOKEN INFORMATION", (_ID32, _ALLOCATION)),
    (0x84, 0x08): ("REPORT ALL ROD TOKENS", (_ALLOCATION,)),
}

LIST_IDENTIFIER_BYTE: Final = 2
"""Where RECEIVE COPY and COPY OPERATION ABORT have their LIST IDENTIFIER: 24h/00h for an unknown id points here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cdb:
    """One command.  A field that the command does not have stays 0."""

    operation_code: int
    service_action: int
    list_identifier: int = 0
    parameter_list_length: int = 0
    allocation_length: int = 0
    group_number: int = 0
    control: int = 0

    def __post_init__(self) -> None:
        if (self.operation_code, self.service_action) not in _COMMANDS:
            raise LocalProtocolError(
                f"no command {self.operation_code:02X}h/{self.service_action:02X}h"
            )
        layout = self._layout()
        for field in layout:
            if not field.holds(getattr(self, field.name)):
                raise LocalProtocolError(
                    f"{self.name}: {field.name} does not fit {field.bits} bits"
                )
        has = {field.name for field in layout}
        for name in (
            "list_identifier",
            "parameter_list_length",
            "allocation_length",
            "group_number",
        ):
            if name not in has and getattr(self, name):
                raise LocalProtocolError(f"{self.name} has no {name}")

    @property
    def name(self) -> str:
        """The name of the command in the standard."""
        return _COMMANDS[self.operation_code, self.service_action][0]

    def encode(self) -> bytes:
        """Return the 16 bytes."""
        return bytes(write_fields(self._layout(), CDB_BYTES, self._values()))

    @classmethod
    def decode(cls, data: bytes) -> Cdb:
        """Decode 16 bytes; raises `CdbError`."""
        if len(data) != CDB_BYTES:
            raise CdbError(f"a CDB of {len(data)} bytes, {CDB_BYTES} expected")
        operation = data[0]
        if operation not in tuple(OperationCode):
            raise CdbError(
                f"operation code {operation:02X}h is no third-party copy command",
                sense=INVALID_OPERATION_CODE,
                field=0,
            )
        action = data[1] & 0x1F
        known = _COMMANDS.get((operation, action))
        if known is None:
            raise CdbError(
                f"operation code {operation:02X}h has no service action {action:02X}h",
                field=1,
                bit=4,
            )
        values = read_fields((*known[1], _CONTROL), data)
        return cls(operation_code=operation, service_action=action, **values)

    def fields(self) -> dict[str, int | str]:
        """Return every field of this command under its name in the standard, in lower case."""
        return {name: int(value) for name, value in self._values().items()}

    def _layout(self) -> Layout:
        return (
            _OPERATION,
            _ACTION,
            *_COMMANDS[self.operation_code, self.service_action][1],
            _CONTROL,
        )

    def _values(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in self._layout()}
