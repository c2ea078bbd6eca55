"""Tapes of other programs are recognised by their first record, and nothing in it can make the report long or odd."""

from __future__ import annotations

import io
import struct
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.tape_format import PREFIX_BYTES
from backplane.tape_format.foreign import FOREIGN_CHARACTERS_MAX, describe_foreign


def ansi(*, name: str = "ABC123", implementation: str = "", owner: str = "") -> bytes:
    label = f"VOL1{name:6} {'':13}{implementation:13}{owner:14}{'':28}4"
    assert len(label) == 80
    return label.encode()


def bareos(program: bytes) -> bytes:
    """Block header, record header (label: FileIndex -2), and the label's first string."""
    block = struct.pack(">III4sII", 0x1234, 64512, 0, b"BB02", 1, 1_700_000_000)
    return (block + struct.pack(">iiI", -2, 0, 200) + program).ljust(64512, b"\0")


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", bufsize=10240) as archive:
        archive.addfile(tarfile.TarInfo("etc/passwd"))
    return stream.getvalue()[:10240]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (ansi(implementation="LTFS"), "an LTFS volume, 'ABC123'"),
        (ansi(owner="ADSM"), "ANSI label of volume 'ABC123', owner 'ADSM'"),
        (ansi(name="X"), "ANSI label of volume 'X'"),
        (ansi().decode().encode("cp500"), "ANSI label (EBCDIC) of 'ABC123'"),
        (b"VOL1A00042".ljust(1024, b"\0"), "a NetBackup volume, media id 'A00042'"),
        (bareos(b"Bareos 2.0 immortal\n\0"), "a Bareos volume"),
        (bareos(b"Bacula 1.0 immortal\n\0"), "a Bacula or Bareos volume"),
        (
            b"AMANDA: TAPESTART DATE 20260111104348 TAPE DAILY-07\n\x0c\n".ljust(32768, b"\0"),
            "an Amanda tape, label 'DAILY-07'",
        ),
        (b"AMANDA: TAPESTART DATE X\n", "an Amanda tape"),
        (tar(), "a tar archive, first member 'etc/passwd'"),
        (b"070707000001".ljust(512, b"0"), "a cpio archive"),
        (b"SDVMETA\0".ljust(PREFIX_BYTES, b"\0"), "a volume of ours without its label"),
        (b"", "unknown: it begins with a filemark"),
        (bytes(512), "unknown: the first record is 512 zero bytes"),
        (b"noise", "unknown: the first record has 5 bytes and begins 6e 6f 69 73 65"),
    ],
)
def test_tapes_of_others_are_called_by_name(record: bytes, expected: str) -> None:
    assert describe_foreign(record) == expected
    # The beginning is enough, if the length is told.
    assert describe_foreign(memoryview(record[:1024]), length=len(record)) == expected


def test_an_ansi_label_is_told_from_a_netbackup_header_by_its_length() -> None:
    assert "NetBackup" in describe_foreign(ansi(), length=1024)
    assert "NetBackup" not in describe_foreign(ansi(), length=80)


@given(
    start=st.sampled_from(
        [
            b"",
            b"VOL1",
            b"AMANDA: TAPESTART",
            b"AMANDA: TAPESTART TAPE",
            b"070707",
            b"\xe5\xd6\xd3\xf1",
        ]
    ),
    rest=st.binary(max_size=400),
    length=st.sampled_from([None, 80, 1024, 1 << 24]),
)
def test_a_report_is_short_and_printable_whatever_the_record_holds(
    start: bytes, rest: bytes, length: int | None
) -> None:
    for record in (start + rest, (start + rest).ljust(257, b"'") + b"ustar"):
        report = describe_foreign(record, length=length)
        assert 0 < len(report) <= FOREIGN_CHARACTERS_MAX
        assert report.isascii()
        assert report.isprintable()
