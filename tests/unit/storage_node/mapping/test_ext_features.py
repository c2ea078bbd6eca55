"""Feature bits of ext: refused by name or number, told by name, and what a volume is called."""

from __future__ import annotations

import pytest

from storage_node.mapping.ext_features import (
    EXTENTS,
    FILETYPE,
    HAS_JOURNAL,
    META_BG,
    METADATA_CSUM,
    RECOVER,
    SPARSE_SUPER,
    feature_names,
    kind_of,
    refuse_unknown,
)
from storage_node.mapping.reader import UnsupportedError


@pytest.mark.parametrize(
    ("bit", "words"),
    [
        (0x1, "compression"),
        (0x8, "journal of another"),
        (0x1000, "data in directory entries"),
        (0x20, r"unknown features of ext \(0x20\)"),
        (0x80000020, r"unknown features of ext \(0x80000020\)"),
    ],
)
def test_what_changes_the_layout_and_is_not_known_is_refused(bit: int, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        refuse_unknown(bit | EXTENTS)


def test_what_is_known_is_not_refused() -> None:
    refuse_unknown(0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400)
    refuse_unknown(0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000)


def test_features_have_the_names_that_mke2fs_gives_them() -> None:
    assert feature_names(HAS_JOURNAL, METADATA_CSUM, EXTENTS) == (
        "has_journal",
        "metadata_csum",
        "extent",
    )
    assert feature_names(1 << 30, 1 << 31, 0) == ("compatible:0x40000000", "read-only:0x80000000")


def test_a_volume_is_called_by_what_it_needs() -> None:
    assert kind_of(0, SPARSE_SUPER, FILETYPE) == "ext2"
    assert kind_of(HAS_JOURNAL, SPARSE_SUPER, FILETYPE | RECOVER | META_BG) == "ext3"
    assert kind_of(HAS_JOURNAL, SPARSE_SUPER, FILETYPE | EXTENTS) == "ext4"
    assert kind_of(0, METADATA_CSUM, FILETYPE) == "ext4"
