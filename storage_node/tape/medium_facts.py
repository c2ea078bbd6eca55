"""What the node knows of a cartridge besides its tape, whatever it is kept in.

`CartridgeInfo` is that of a virtual one, in its folder; `MediumRecord` that of a real one, in the node's state folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from backplane.errors import UsageError, VolumeError
from storage_node.core.retention import moment

POOL_CHARACTERS_MAX: Final = 64
SINCE_2: Final = {"since": 2}
SINCE_3: Final = {"since": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class MediumFacts:
    """Facts of one cartridge.  `serial` is the medium's own number ("" if nobody knows it), `capacity_bytes` 0 as well.

    `retain_until` (RFC 3339, "" for none) and `is_held` keep it from being erased.  `volume_change_reference` grows
    before content may change; `coherent_reference` is that for which trailer `coherent_sequence` at object
    `coherent_object` was the last one, of pool `pool`.  Bytes (those of the records, before compression) and errors are
    counted when the cartridge is taken out: over its life, and in the last load.
    """

    tag: str
    serial: str = ""
    capacity_bytes: int = 0
    is_write_protected: bool = False
    is_worm: bool = False
    load_count: int = 0
    volume_change_reference: int = 0
    retain_until: str = field(default="", metadata=SINCE_2)
    is_held: bool = field(default=False, metadata=SINCE_2)
    pool: str = field(default="", metadata=SINCE_2)
    coherent_reference: int = field(default=0, metadata=SINCE_2)
    coherent_sequence: int = field(default=0, metadata=SINCE_2)
    coherent_object: int = field(default=0, metadata=SINCE_2)
    bytes_written: int = field(default=0, metadata=SINCE_3)
    bytes_read: int = field(default=0, metadata=SINCE_3)
    last_bytes_written: int = field(default=0, metadata=SINCE_3)
    last_bytes_read: int = field(default=0, metadata=SINCE_3)
    read_errors: int = field(default=0, metadata=SINCE_3)
    write_errors: int = field(default=0, metadata=SINCE_3)

    def __post_init__(self) -> None:
        if self.retain_until:
            try:
                moment(self.retain_until)
            except UsageError as error:
                raise VolumeError(f"retain_until: {error.message}") from error
        if len(self.pool) > POOL_CHARACTERS_MAX:
            raise VolumeError("the name of the pool is too long")
        coherent = (self.coherent_reference, self.coherent_sequence, self.coherent_object)
        counted = (
            *(self.bytes_written, self.bytes_read, self.last_bytes_written, self.last_bytes_read),
            *(self.read_errors, self.write_errors),
        )
        if min(*coherent, *counted) < 0 or max(*coherent, *counted) >= 1 << 64:
            raise VolumeError("a counter of the cartridge is impossible")
