"""Names of logical units."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import LocalProtocolError
from backplane.scsi.designator import Designation, designator_of

UUID = "0123456789abcdef0123456789abcdef"


def test_a_designator_is_locally_assigned_and_follows_from_the_uuid_alone() -> None:
    designator = designator_of(UUID)
    digest = hashlib.sha256(UUID.encode()).hexdigest()
    assert designator.hex() == "3" + digest[:15]
    assert designator == designator_of(UUID)


@pytest.mark.parametrize("text", ["", UUID[:-1], UUID.upper(), UUID + "0", UUID[:-1] + "g"])
def test_another_spelling_is_refused_because_it_would_be_another_name(text: str) -> None:
    with pytest.raises(LocalProtocolError):
        designator_of(text)


def test_a_designation_is_masked_and_copied_verbatim() -> None:
    page83 = bytes.fromhex("61 a3 00 08 3000000000000001")
    designation = Designation.decode(page83)
    assert designation is not None
    assert designation.encode() == bytes.fromhex("01 23 00 08 3000000000000001")
    assert (designation.association, designation.designator_type) == (2, 3)


@pytest.mark.parametrize("data", [b"", b"\x01\x03\x00", b"\x01\x03\x00\x08\x30"])
def test_a_designation_that_is_cut_short_is_none(data: bytes) -> None:
    assert Designation.decode(data) is None


@given(
    st.builds(
        Designation,
        designator=st.binary(max_size=255),
        code_set=st.integers(0, 15),
        association=st.integers(0, 3),
        designator_type=st.integers(0, 15),
    )
)
def test_designations_round_trip_and_have_words(designation: Designation) -> None:
    assert Designation.decode(designation.encode()) == designation
    assert designation.describe()


@pytest.mark.parametrize(
    ("designation", "words"),
    [
        (
            Designation(designator=bytes.fromhex("3000000000000001")),
            "NAA locally assigned 3000000000000001 (binary, logical unit)",
        ),
        (
            Designation(designator=b"VENDOR x", code_set=2, designator_type=1),
            "T10 vendor id 'VENDOR x' (ASCII, logical unit)",
        ),
        (
            Designation(designator=b"", code_set=9, association=3, designator_type=12),
            "type Ch (empty) (code set 9h, association 3)",
        ),
    ],
)
def test_a_designation_is_said_in_words(designation: Designation, words: str) -> None:
    assert designation.describe() == words


@pytest.mark.parametrize("wrong", [{"designator": bytes(256)}, {"designator": b"", "code_set": 16}])
def test_what_cannot_be_encoded_cannot_be_made(wrong: dict[str, bytes]) -> None:
    with pytest.raises(LocalProtocolError):
        Designation(**wrong)  # type: ignore[arg-type]
