"""The conditions of a tape drive as sense data (SSC; tape reference sections 4 to 6)."""

from __future__ import annotations

from typing import Final

from backplane.errors import SenseTriple
from backplane.scsi.sense import Sense, SenseKey

NO_MEDIUM: Final = SenseTriple(0x02, 0x3A, 0x00)
MEDIUM_CHANGED: Final = SenseTriple(0x06, 0x28, 0x00)
WRITE_PROTECTED: Final = SenseTriple(0x07, 0x27, 0x00)
CANNOT_WRITE: Final = SenseTriple(0x07, 0x30, 0x05)
"""CANNOT WRITE MEDIUM - INCOMPATIBLE FORMAT: a tape of somebody else, or not the one that it should be."""

OVERWRITE_REFUSED: Final = SenseTriple(0x07, 0x30, 0x0C)
INVALID_FIELD: Final = SenseTriple(0x05, 0x24, 0x00)
WRONG_POSITION: Final = SenseTriple(0x0B, 0x3B, 0x00)
GUARD_CHECK: Final = SenseTriple(0x0B, 0x10, 0x01)
READ_ERROR: Final = SenseTriple(0x03, 0x11, 0x00)
WRITE_ERROR: Final = SenseTriple(0x03, 0x0C, 0x00)
END_UNKNOWN: Final = SenseTriple(0x03, 0x31, 0x00)
FILEMARK: Final = SenseTriple(0x00, 0x00, 0x01)
END_OF_MEDIUM: Final = SenseTriple(0x00, 0x00, 0x02)
BEGINNING: Final = SenseTriple(0x00, 0x00, 0x04)
PROGRAMMABLE_WARNING: Final = SenseTriple(0x00, 0x00, 0x07)
INCORRECT_LENGTH: Final = SenseTriple(0x00, 0x00, 0x00)
END_OF_DATA: Final = SenseTriple(0x08, 0x00, 0x05)
OVERFLOW: Final = SenseTriple(0x0D, 0x00, 0x02)


def sense_of(
    triple: SenseTriple,
    *,
    information: int | None = None,
    end_of_medium: bool = False,
    incorrect_length: bool = False,
) -> Sense:
    """Return the sense data of a condition; `information` None is VALID=0."""
    return Sense(
        key=SenseKey(triple.key),
        asc=triple.asc,
        ascq=triple.ascq,
        information=information,
        filemark=triple == FILEMARK,
        end_of_medium=end_of_medium,
        incorrect_length=incorrect_length,
    )
