"""Names of sense codes."""

from __future__ import annotations

import pytest

from backplane.scsi.sense_codes import ADDITIONAL_SENSE, name_of_additional_sense, name_of_key

MENTIONED = """
00/00 00/01 00/02 00/04 00/05 00/07 00/16 00/20 08/04 0D/00 0D/01 0D/02 0D/03 0D/04 0D/05 10/01 11/00 1A/00
20/00 24/00 26/00 26/06 26/07 26/08 26/09 26/0A 26/0B 26/0C 26/0D 26/14 26/15 26/16 27/00 28/00 29/00 2F/02
30/00 30/0C 31/00 3A/00 3B/00 04/00 04/07 23/00 23/0A 25/00
"""
"""Every code that extended-copy.md, tape.md and backplane/errors.py mention."""


@pytest.mark.parametrize("code", MENTIONED.split())
def test_every_code_that_we_use_has_a_name(code: str) -> None:
    asc, ascq = (int(part, 16) for part in code.split("/"))
    assert (asc, ascq) in ADDITIONAL_SENSE
    assert name_of_additional_sense(asc, ascq).isupper()


def test_a_code_without_a_name_says_so() -> None:
    assert "without a name" in name_of_additional_sense(0x7F, 0x7F)


@pytest.mark.parametrize("key", range(16))
def test_every_sense_key_has_a_name(key: int) -> None:
    assert name_of_key(key).replace(" ", "").isalpha()


def test_names_are_those_of_the_standard() -> None:
    assert name_of_key(0x0A) == "COPY ABORTED"
    assert name_of_additional_sense(0x26, 0x0A) == "UNEXPECTED INEXACT SEGMENT"
    assert name_of_additional_sense(0x3B, 0x00) == "SEQUENTIAL POSITIONING ERROR"
