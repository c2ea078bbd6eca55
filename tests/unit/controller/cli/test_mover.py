from __future__ import annotations

from typing import Any

LIST = """\
MOVER    STATE  SINCE                JOB  ITEM  READ  WRITTEN
mover-1  busy   2026-01-11 10:00:00    7    11  1MiB       0B
mover-2  idle   2026-01-11 10:00:00    -     -    0B       0B
"""


def test_list_as_a_table(controller: Any, ctl: Any, documents: Any) -> None:
    mover = documents["mover"]
    idle = mover | {"name": "mover-2", "state": "idle", "job": 0, "item": 0, "bytes_read": 0}
    controller.answers["mover.list"] = {"movers": [mover, idle]}
    assert ctl("mover", "list") == (0, LIST, "")
