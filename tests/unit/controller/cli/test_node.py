from __future__ import annotations

from typing import Any

LIST = """\
NODE  ROLES  STATE   SINCE                VOLUMES  DRIVES  CARTRIDGES  ADDRESSES
disk  disk   online  2026-01-11 10:00:00        1       0           0  tcp://127.0.0.1:4711
"""


def test_list_as_a_table(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["node.list"] = {"nodes": [documents["node"]]}
    assert ctl("node", "list") == (0, LIST, "")
