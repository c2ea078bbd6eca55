"""The feature bits of ext2, ext3 and ext4: what may be read, what is refused, and what a volume is called.

A bit in the *incompatible* word changes the layout: one that is not known here is refused, by its number.  A bit in
the *read-only compatible* word leaves the layout readable, so an unknown one is only told.  *Compatible* bits change
nothing.
"""

from __future__ import annotations

from typing import Final

from storage_node.mapping.reader import UnsupportedError

# Compatible.
HAS_JOURNAL: Final = 0x4
DIR_INDEX: Final = 0x20
FAST_COMMIT: Final = 0x400
SPARSE_SUPER2: Final = 0x200

# Read-only compatible.
SPARSE_SUPER: Final = 0x1
GDT_CSUM: Final = 0x10
BIGALLOC: Final = 0x200
METADATA_CSUM: Final = 0x400
SHARED_BLOCKS: Final = 0x4000

# Incompatible.
FILETYPE: Final = 0x2
RECOVER: Final = 0x4
JOURNAL_DEVICE: Final = 0x8
META_BG: Final = 0x10
EXTENTS: Final = 0x40
BITS64: Final = 0x80
CSUM_SEED: Final = 0x2000
LARGE_DIRECTORY: Final = 0x4000
INLINE_DATA: Final = 0x8000
CASEFOLD: Final = 0x20000

_COMPATIBLE: Final = {
    HAS_JOURNAL: "has_journal",
    0x8: "ext_attr",
    0x10: "resize_inode",
    DIR_INDEX: "dir_index",
    SPARSE_SUPER2: "sparse_super2",
    FAST_COMMIT: "fast_commit",
    0x800: "stable_inodes",
    0x1000: "orphan_file",
}
_READ_ONLY: Final = {
    SPARSE_SUPER: "sparse_super",
    0x2: "large_file",
    0x4: "btree_dir",
    0x8: "huge_file",
    GDT_CSUM: "uninit_bg",
    0x20: "dir_nlink",
    0x40: "extra_isize",
    0x100: "quota",
    BIGALLOC: "bigalloc",
    METADATA_CSUM: "metadata_csum",
    0x1000: "read-only",
    0x2000: "project",
    SHARED_BLOCKS: "shared_blocks",
    0x8000: "verity",
    0x10000: "orphan_present",
}
_INCOMPATIBLE: Final = {
    FILETYPE: "filetype",
    RECOVER: "needs_recovery",
    META_BG: "meta_bg",
    EXTENTS: "extent",
    BITS64: "64bit",
    0x100: "mmp",
    0x200: "flex_bg",
    0x400: "ea_inode",
    CSUM_SEED: "metadata_csum_seed",
    LARGE_DIRECTORY: "large_dir",
    INLINE_DATA: "inline_data",
    0x10000: "encrypt",
    CASEFOLD: "casefold",
}
_REFUSED: Final = {
    0x1: "compression",
    JOURNAL_DEVICE: "a journal of another file system",
    0x1000: "data in directory entries",
}

_EXT3_READ_ONLY: Final = SPARSE_SUPER | 0x2 | 0x4
_EXT3_INCOMPATIBLE: Final = FILETYPE | RECOVER | META_BG
"""Whatever goes beyond these is ext4."""


def refuse_unknown(incompatible: int) -> None:
    """Refuse what changes the layout and is not known here, by name or number."""
    for bit, name in _REFUSED.items():
        if incompatible & bit:
            raise UnsupportedError(f"ext: {name} (feature {bit:#x})")
    unknown = incompatible & ~sum(_INCOMPATIBLE)
    if unknown:
        raise UnsupportedError(f"unknown features of ext ({unknown:#x})")


def feature_names(compatible: int, read_only: int, incompatible: int) -> tuple[str, ...]:
    """Return the features by the names that mke2fs has for them; unknown ones by their number."""
    found = []
    for kind, bits, names in (
        ("compatible", compatible, _COMPATIBLE),
        ("read-only", read_only, _READ_ONLY),
        ("incompatible", incompatible, _INCOMPATIBLE),
    ):
        found += [name for bit, name in names.items() if bits & bit]
        unknown = bits & ~sum(names)
        if unknown:
            found.append(f"{kind}:{unknown:#x}")
    return tuple(found)


def kind_of(compatible: int, read_only: int, incompatible: int) -> str:
    """Return `ext2`, `ext3` or `ext4`."""
    if read_only & ~_EXT3_READ_ONLY or incompatible & ~_EXT3_INCOMPATIBLE:
        return "ext4"
    return "ext3" if compatible & HAS_JOURNAL else "ext2"
