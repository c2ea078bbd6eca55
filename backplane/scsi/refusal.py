"""How a copy manager refuses a command before it processes the first segment (SPC-4 5.17.7.3).

The sense key is ILLEGAL REQUEST, INFORMATION is not valid, and the field pointer counts from the start of the
parameter list (or of the CDB).  It has 16 bits: a field further back cannot be pointed at.
"""

from __future__ import annotations

from typing import ClassVar, Final

from backplane.errors import CopyError, SenseTriple
from backplane.scsi.sense import FieldPointer, Sense, SenseKey

PARAMETER_LIST_LENGTH_ERROR: Final = SenseTriple(SenseKey.ILLEGAL_REQUEST, 0x1A, 0x00)
INVALID_OPERATION_CODE: Final = SenseTriple(SenseKey.ILLEGAL_REQUEST, 0x20, 0x00)
INVALID_FIELD_IN_CDB: Final = SenseTriple(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00)
INVALID_FIELD_IN_PARAMETER_LIST: Final = SenseTriple(SenseKey.ILLEGAL_REQUEST, 0x26, 0x00)
TOO_MANY_CSCDS: Final = SenseTriple(SenseKey.ILLEGAL_REQUEST, 0x26, 0x06)
UNSUPPORTED_CSCD_TYPE: Final = SenseTriple(SenseKey.ILLEGAL_REQUEST, 0x26, 0x07)
TOO_MANY_SEGMENTS: Final = SenseTriple(SenseKey.ILLEGAL_REQUEST, 0x26, 0x08)
UNSUPPORTED_SEGMENT_TYPE: Final = SenseTriple(SenseKey.ILLEGAL_REQUEST, 0x26, 0x09)


class CommandRefusedError(CopyError):
    """The command was refused before anything was copied; `sense_data` is what the copy manager answers."""

    kind = "command-refused"
    default_sense: ClassVar[SenseTriple] = INVALID_FIELD_IN_CDB
    _in_command: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        sense: SenseTriple | None = None,
        field: int | None = None,
        bit: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint, sense=sense)
        self.field = field
        self.bit = bit
        if not hint:
            self.hint = f"the copy manager answers: {self.sense_data.describe()}"

    @property
    def sense_data(self) -> Sense:
        """The sense data with the field pointer, where it can be expressed."""
        pointer = None
        if self.field is not None and self.field <= 0xFFFF:
            pointer = FieldPointer(field=self.field, bit=self.bit, in_command=self._in_command)
        key, asc, ascq = self.sense
        return Sense(key=SenseKey(key), asc=asc, ascq=ascq, field_pointer=pointer)


class CdbError(CommandRefusedError):
    """The command descriptor block is none that we know."""

    kind = "cdb"
    _in_command: ClassVar[bool] = True


class ParameterListError(CommandRefusedError):
    """The parameter list breaks a rule; `field` is the byte of the list that does (None: no single one)."""

    kind = "parameter-list"
    default_sense: ClassVar[SenseTriple] = INVALID_FIELD_IN_PARAMETER_LIST

    def moved(self, offset: int, *, prefix: str) -> ParameterListError:
        """Return the same refusal of a descriptor, seen from the list that holds it at `offset`."""
        field = None if self.field is None else self.field + offset
        return ParameterListError(
            f"{prefix}: {self.message}", sense=self.sense, field=field, bit=self.bit
        )
