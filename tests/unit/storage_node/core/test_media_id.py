"""What a barcode says of its cartridge."""

from __future__ import annotations

import pytest

from storage_node.core.media_id import TERABYTE, Medium, medium_of


@pytest.mark.parametrize(
    ("tag", "medium"),
    [
        ("LTO001L8", Medium(12 * TERABYTE)),
        ("LTO001L5", Medium(1_500_000_000_000)),
        ("LTO001M8", Medium(9 * TERABYTE)),
        ("LTO001LV", Medium(1_500_000_000_000, is_worm=True)),
        ("LTO001LZ", Medium(18 * TERABYTE, is_worm=True)),
        ("LTO001LA", Medium()),
        ("LTO001X8", Medium()),
        ("TAPE1L8", Medium()),
        ("L8", Medium()),
        ("", Medium()),
    ],
)
def test_the_media_identifier_says_capacity_and_worm(tag: str, medium: Medium) -> None:
    assert medium_of(tag) == medium
