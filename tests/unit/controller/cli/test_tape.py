from __future__ import annotations

import json
from typing import Any

LIST = """\
CARTRIDGE  STATUS    LOCATION       NODE            USED            CAPACITY  PARTS  DETAIL
LTO001L8   writable  drive drive-0  tape  3GiB (3.22 GB)  10.9TiB (12.00 TB)      1  -
"""

PAGE = """\
  Cartridge:    LTO001L8
  Status:       writable
  Detail:       -
  Location:     drive drive-0 of tape
  Identifier:   fedcba9876543210fedcba9876543210
  Used:         3GiB (3.22 GB)
  Capacity:     10.9TiB (12.00 TB)
  End of data:  object 3079
  Generation:   1

SEQUENCE  BACKUP  VOLUME  PART  HEADER  DATA  TRAILER  RECORDS           BYTES
       1       3  vol1       1       3     4     3077     3072  3GiB (3.22 GB)
"""


def test_list_shows_status_and_location_and_decimal_sizes(
    controller: Any, ctl: Any, documents: Any
) -> None:
    controller.answers["tape.list"] = {"cartridges": [documents["cartridge"]]}
    assert ctl("tape", "list") == (0, LIST, "")


def test_show_lists_the_parts(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["tape.show"] = documents["cartridge"] | {"parts_detail": [documents["part"]]}
    assert ctl("tape", "show", "LTO001L8") == (0, PAGE, "")


def test_add_takes_a_capacity_with_a_unit(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["tape.add"] = documents["cartridge"]
    code, out, _ = ctl("tape", "add", "LTO005L8", "--capacity", "12TB", "--output", "json")
    assert (code, json.loads(out)) == (0, documents["cartridge"])
    assert controller.arguments("tape.add") == {
        "tag": "LTO005L8",
        "capacity_bytes": 12 * 10**12,
        "node": "",
    }


def test_a_capacity_that_is_no_size_is_a_usage_error(ctl: Any) -> None:
    code, out, err = ctl("tape", "add", "LTO005L8", "--capacity", "12 parsecs")
    assert (code, out) == (2, "")
    assert "not a size" in err
