"""A medium changer as bytes: a library that answers SCSI commands, and remembers which came."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from backplane.errors import MediumError
from storage_node.core.smc import ElementType

TRANSPORT, STORAGE, DOOR, DRIVES = (1, 1), (0x1000, 4), (0x10, 2), (0x100, 2)


def assignment_reply(*spans: tuple[int, int]) -> bytes:
    """Return mode data with page 1Dh."""
    page = bytes([0x1D, 0x12]) + b"".join(struct.pack(">HH", *span) for span in spans) + bytes(2)
    return bytes([3 + len(page), 0, 0, 0]) + page


def descriptor(
    address: int,
    tag: str | None = None,
    *,
    source: int | None = None,
    exception: tuple[int, int] | None = None,
    has_tag: bool = True,
) -> bytes:
    """Return an element descriptor; `tag` None is an empty element."""
    flags = (0x01 if tag is not None else 0) | (0x04 if exception else 0)
    asc, ascq = exception or (0, 0)
    valid = 0x80 if source is not None else 0
    head = struct.pack(">HBBBBBBBBH", address, flags, 0, asc, ascq, 0, 0, 0, valid, source or 0)
    return head + ((tag or "").encode("latin-1").ljust(32) + bytes(4) if has_tag else b"")


def page(kind: ElementType, descriptors: Sequence[bytes], *, has_tags: bool = True) -> bytes:
    """Return an element status page."""
    data = b"".join(descriptors)
    length = len(descriptors[0]) if descriptors else 48
    return struct.pack(">BBHI", kind, 0x80 if has_tags else 0, length, len(data)) + data


def status_reply(*pages: bytes) -> bytes:
    """Return element status data."""
    data = b"".join(pages)
    count = sum(
        struct.unpack_from(">I", each, 4)[0] // struct.unpack_from(">H", each, 2)[0]
        for each in pages
    )
    return struct.pack(">HHI", 0, count, len(data)) + data


class SmcDevice:
    """Implements `ScsiGeneric`: four slots, a door of two, two drives."""

    def __init__(self, **tags: str) -> None:
        """Give the barcodes of elements by names such as `slot_1`."""
        spans = {"slot": (STORAGE, 1), "io": (DOOR, 1), "drive": (DRIVES, 0)}
        self.content: dict[int, tuple[str, int | None]] = {}
        for name, tag in tags.items():
            kind, _, number = name.partition("_")
            (first, _), base = spans[kind]
            self.content[first + int(number) - base] = (tag, None)
        self.log: list[str] = []
        self.fail: MediumError | None = None

    def command(self, cdb: bytes, *, receive: int, timeout_s: float) -> bytes:
        self.log.append(cdb.hex())
        assert timeout_s >= 60
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        match cdb[0]:
            case 0x1A:
                return assignment_reply(TRANSPORT, STORAGE, DOOR, DRIVES)[:receive]
            case 0x07:
                return b""
            case 0xB8:
                return self._status()[:receive]
            case 0xA5:
                source, destination = struct.unpack_from(">HH", cdb, 4)
                tag, _ = self.content.pop(source)
                assert destination not in self.content
                self.content[destination] = (tag, source)
                return b""
        raise AssertionError(cdb.hex())

    def _status(self) -> bytes:
        pages = [page(ElementType.TRANSPORT, [descriptor(1)])]
        for kind, (first, count) in (
            (ElementType.STORAGE, STORAGE),
            (ElementType.IMPORT_EXPORT, DOOR),
            (ElementType.DATA_TRANSFER, DRIVES),
        ):
            descriptors = []
            for address in range(first, first + count):
                tag, source = self.content.get(address, (None, None))
                descriptors.append(descriptor(address, tag, source=source))
            pages.append(page(kind, descriptors))
        return status_reply(*pages)
