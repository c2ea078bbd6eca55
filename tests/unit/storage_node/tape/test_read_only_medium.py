from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from storage_node.tape.read_only_medium import ReadOnlyMedium


def test_it_is_read_and_never_changed(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"0123456789")
    path.chmod(0o400)
    with closing(ReadOnlyMedium(path)) as medium:
        buffers = [bytearray(3), bytearray(9)]
        assert medium.read(buffers, 1) == 9
        assert bytes(buffers[0] + buffers[1][:6]) == b"123456789"
        medium.synchronise()
        assert medium.size() == 10
        with pytest.raises(OSError, match="Bad file descriptor"):
            medium.write([b"x"], 0)
        with pytest.raises(OSError, match=r"Invalid argument|Bad file descriptor"):
            medium.truncate(0)
    assert path.read_bytes() == b"0123456789"
