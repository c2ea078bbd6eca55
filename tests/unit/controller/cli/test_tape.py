"""`ctl tape`: what is shown, and which verb is called with what."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.errors import RefusedError
from controller.cli.tape import elements, retention

LIST = """\
CARTRIDGE  STATUS    LOCATION  POOL    RETAIN               NODE            USED            CAPACITY  PARTS  DETAIL
LTO001L8   writable  drive-0   weekly  2026-02-10 10:43:48  tape  3GiB (3.22 GB)  10.9TiB (12.00 TB)      1  -
"""

PAGE = """\
  Cartridge:       LTO001L8
  Status:          writable
  Detail:          -
  Location:        drive-0 of tape
  Pool:            weekly
  Retained until:  2026-02-10 10:43:48
  Held:            -
  Protection:      -
  First written:   2026-01-11 10:43:48
  Last written:    2026-01-11 10:43:48
  Identifier:      fedcba9876543210fedcba9876543210
  Used:            3GiB (3.22 GB)
  Compression:     2.00:1
  Capacity:        10.9TiB (12.00 TB)
  End of data:     object 3079
  Generation:      1
  Loads:           2
  Errors:          1 read, 0 write
  TapeAlert:       media

SEQUENCE  BACKUP  VOLUME  PART  HEADER  DATA  TRAILER  RECORDS           BYTES
       1       3  vol1       1       3     4     3077     3072  3GiB (3.22 GB)
"""

STATUS = """\
DRIVE         STATE         CARTRIDGE  JOB  LOADS  PRODUCT  SERIAL  REASON
tape/drive-0  Transferring  LTO001L8     7      3  LTO-9    1234    -

JOB  WAITS FOR
  8  scratch cartridge for pool weekly

cartridges: 1 blank, 2 full
"""

INVENTORY = """\
NODE  ELEMENT  CARTRIDGE  STATUS    POOL    DETAIL
tape  drive-0  LTO001L8   writable  weekly  -
tape  drive-1  -          -         -       -
tape  slot-2   LTO002L8   blank     -       -
tape  slot-10  LTO003L8   error     weekly  torn
"""


def test_list_shows_status_and_location_and_decimal_sizes(
    controller: Any, ctl: Any, documents: Any
) -> None:
    controller.answers["tape.list"] = {"cartridges": [documents["cartridge"]]}
    assert ctl("tape", "list") == (0, LIST, "")


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ((), ["A", "B", "C"]),
        (("--pool", "weekly"), ["A", "C"]),
        (("--pool", "scratch"), ["B"]),
        (("--pool", "weekly", "--status", "full"), ["C"]),
    ],
)
def test_list_shows_what_is_asked_for(
    controller: Any, ctl: Any, documents: Any, options: tuple[str, ...], shown: list[str]
) -> None:
    rows = [
        documents["cartridge"] | {"tag": "A"},
        documents["cartridge"] | {"tag": "B", "pool": ""},
        documents["cartridge"] | {"tag": "C", "status": "full"},
    ]
    controller.answers["tape.list"] = {"cartridges": rows}
    code, out, _ = ctl("tape", "list", *options, "--output", "jsonl")
    assert (code, [json.loads(line)["tag"] for line in out.splitlines()]) == (0, shown)


def test_list_says_what_keeps_from_writing_and_what_is_only_an_estimate(
    controller: Any, ctl: Any, documents: Any
) -> None:
    rows = [
        documents["cartridge"] | {"tag": "A", "is_write_protected": True, "detail": "bent"},
        documents["cartridge"] | {"tag": "B", "is_out_of_space": True},
        documents["cartridge"] | {"tag": "C", "is_used_known": False},
    ]
    controller.answers["tape.list"] = {"cartridges": rows}
    _, out, _ = ctl("tape", "list")
    _, a, b, c = out.splitlines()
    assert a.endswith("  bent; write protected")
    assert b.endswith("  no room on the disk below")
    assert (c.endswith(" -"), "~" in c, "~" in a + b) == (True, True, False)


def test_a_list_of_nothing_says_why(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["tape.list"] = {"cartridges": [documents["cartridge"]]}
    nothing = (0, "no cartridge is of this pool and status\n", "")
    assert ctl("tape", "list", "--pool", "nosuch") == nothing
    assert ctl("tape", "list", "--status", "quarantined") == nothing
    assert ctl("tape", "list", "--status", "bogus")[0] == 2
    controller.answers["tape.list"] = {"cartridges": []}
    assert "`ctl tape add` adds one" in ctl("tape", "list", "--status", "full")[1]


def test_what_is_held_and_what_is_kept_for_ever_are_told_so(
    controller: Any, ctl: Any, documents: Any
) -> None:
    held = documents["cartridge"] | {"hold": "lawsuit", "pool": "", "location": "vault X"}
    controller.answers["tape.list"] = {"cartridges": [held]}
    _, out, _ = ctl("tape", "list")
    assert "vault X   scratch  held" in out
    assert retention("9999-12-31T23:59:59Z") == "for ever"
    assert retention("") == "-"


def test_show_lists_the_parts(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["tape.show"] = documents["cartridge"] | {"parts_detail": [documents["part"]]}
    assert ctl("tape", "show", "LTO001L8") == (0, PAGE, "")


def test_show_says_where_a_cartridge_that_is_away_is(
    controller: Any, ctl: Any, documents: Any
) -> None:
    away = {
        "location": "vault X",
        "is_used_known": False,
        "is_worm": True,
        "is_write_protected": True,
        "parts_detail": [],
    }
    controller.answers["tape.show"] = documents["cartridge"] | away
    _, out, _ = ctl("tape", "show", "LTO001L8")
    assert "Location:        vault X\n" in out
    assert "Protection:      WORM, write protected\n" in out


def test_a_vault_that_a_cartridge_has_not_reached_yet_is_told(
    controller: Any, ctl: Any, documents: Any
) -> None:
    noted = documents["cartridge"] | {"location": "io-1", "node": "tape", "vault": "bank-3"}
    controller.answers |= {"tape.vault": noted, "tape.show": noted | {"parts_detail": []}}
    code, _, told = ctl("tape", "vault", "LTO001L8", "bank-3")
    assert code == 0
    assert told == "ctl: LTO001L8 is at io-1 still; it counts as in vault bank-3 once it is out\n"
    assert "Location:        io-1 of tape; noted for vault bank-3\n" in ctl("tape", "show", "X")[1]
    controller.answers["tape.vault"] = documents["cartridge"] | {"location": "vault bank-3"}
    assert ctl("tape", "vault", "LTO001L8", "bank-3")[2] == ""


def test_a_library_that_nobody_has_is_not_found(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers |= {
        "tape.list": {"cartridges": [documents["cartridge"]]},
        "drive.list": {"drives": [documents["drive"]]},
    }
    code, out, told = ctl("tape", "inventory", "--node", "nosuch")
    assert (code, out) == (4, "")
    assert "no library of a node 'nosuch' is known" in told


def test_status_shows_drives_requests_and_counts(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["tape.status"] = {
        "drives": [documents["drive"]],
        "requests": [{"job": 8, "request": "scratch cartridge for pool weekly"}],
        "cartridges": {"blank": 1, "full": 2},
    }
    assert ctl("tape", "status") == (0, STATUS, "")


def test_inventory_shows_every_drive_and_what_holds_a_cartridge(
    controller: Any, ctl: Any, documents: Any
) -> None:
    one, drive = documents["cartridge"], documents["drive"]
    rows = [
        one,
        one | {"tag": "LTO003L8", "location": "slot-10", "status": "error", "detail": "torn"},
        one | {"tag": "LTO002L8", "location": "slot-2", "status": "blank", "pool": ""},
        one | {"tag": "LTO004L8", "location": "vault X"},
        one | {"tag": "LTO005L8", "location": "offline"},
    ]
    empty = drive | {"drive": "drive-1", "tag": ""}
    controller.answers |= {
        "tape.list": {"cartridges": rows},
        "drive.list": {"drives": [empty, drive]},
    }
    assert ctl("tape", "inventory") == (0, INVENTORY, "")
    assert elements(rows, [drive], node="tape2") == []


def test_add_takes_a_capacity_with_a_unit(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["tape.add"] = documents["cartridge"]
    code, out, _ = ctl("tape", "add", "LTO005L8", "--capacity", "12TB", "--output", "json")
    assert (code, json.loads(out)) == (0, documents["cartridge"])
    assert controller.arguments("tape.add") == {
        "tag": "LTO005L8",
        "capacity_bytes": 12 * 10**12,
        "node": "",
        "pool": "",
        "worm": False,
    }


def test_a_capacity_that_is_no_size_is_a_usage_error(ctl: Any) -> None:
    code, out, err = ctl("tape", "add", "LTO005L8", "--capacity", "12 parsecs")
    assert (code, out) == (2, "")
    assert "not a size" in err


@pytest.mark.parametrize(
    ("words", "verb", "arguments"),
    [
        ("load A --drive drive-1", "tape.load", {"tag": "A", "drive": "drive-1"}),
        ("unload A", "tape.unload", {"name": "A"}),
        ("export A", "tape.export", {"tag": "A"}),
        ("import A", "tape.import", {"tag": "A"}),
        ("vault A bank", "tape.vault", {"tag": "A", "vault": "bank"}),
        ("protect A --reason law", "tape.protect", {"tag": "A", "reason": "law"}),
        ("unprotect A", "tape.unprotect", {"tag": "A"}),
        ("retire A", "tape.set", {"tag": "A", "status": "retired"}),
        (
            "set-status A writable --node n",
            "tape.set",
            {"tag": "A", "status": "writable", "node": "n"},
        ),
        ("set-pool A weekly", "tape.set", {"tag": "A", "pool": "weekly"}),
    ],
)
def test_each_command_calls_its_verb_and_shows_the_cartridge(
    controller: Any, ctl: Any, documents: Any, words: str, verb: str, arguments: dict[str, Any]
) -> None:
    controller.answers[verb] = documents["cartridge"]
    assert ctl("tape", *words.split()) == (0, LIST, "")
    assert controller.arguments(verb) == arguments


def test_a_drive_that_is_unloaded_is_shown(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["tape.unload"] = documents["drive"] | {"tag": "", "job": 0, "state": "Up"}
    code, out, _ = ctl("tape", "unload", "drive-0")
    assert code == 0
    assert "tape/drive-0  Up     -" in out


def test_scan_says_who_was_asked(controller: Any, ctl: Any) -> None:
    controller.answers["tape.scan"] = {"nodes": ["tape", "tape2"]}
    assert ctl("tape", "scan") == (0, "scanned: tape, tape2\n", "")


def test_a_label_is_a_job(controller: Any, ctl: Any) -> None:
    controller.answers["job.submit"] = {"job": 9}
    assert ctl("tape", "label", "A", "--pool", "weekly", "--force") == (0, "job 9\n", "")
    asked = controller.arguments("job.submit")
    asked.pop("token")
    assert asked == {"kind": "label", "tag": "A", "pool": "weekly", "force": True}


def test_barcode_label_labels_what_is_blank_and_here(
    controller: Any, ctl: Any, documents: Any
) -> None:
    blank = documents["cartridge"] | {"status": "blank", "location": "slot-1"}
    controller.answers |= {
        "tape.list": {
            "cartridges": [
                documents["cartridge"],
                blank | {"tag": "B"},
                blank | {"tag": "C", "location": "vault X"},
                blank | {"tag": "D"},
            ]
        },
        "job.submit": lambda asked: {"job": {"B": 1, "D": 2}[asked["tag"]]},
    }
    assert ctl("tape", "barcode-label") == (0, "job 1\njob 2\n", "")


def test_barcode_label_goes_on_behind_a_refusal_and_ends_with_it(
    controller: Any, ctl: Any, documents: Any
) -> None:
    blank = documents["cartridge"] | {"status": "blank", "location": "slot-1"}
    rows = [blank | {"tag": "B"}, blank | {"tag": "D"}]

    def submit(asked: dict[str, Any]) -> dict[str, Any]:
        if asked["tag"] == "B":
            raise RefusedError("cartridge B is write protected")
        return {"job": 2}

    controller.answers |= {"tape.list": {"cartridges": rows}, "job.submit": submit}
    code, out, err = ctl("tape", "barcode-label")
    assert (code, out) == (5, "job 2\n")
    assert "B is not labelled: cartridge B is write protected" in err


def test_barcode_label_with_nothing_blank_says_so(
    controller: Any, ctl: Any, documents: Any
) -> None:
    controller.answers["tape.list"] = {"cartridges": [documents["cartridge"]]}
    assert ctl("tape", "barcode-label") == (0, "", "no cartridge is blank\n")


# --- trying and cleaning --------------------------------------------------------------------------


def test_verify_is_a_verification_of_the_cartridge(controller: Any, ctl: Any) -> None:
    controller.answers["job.submit"] = {"job": 12}
    assert ctl("tape", "verify", "LTO001L8", "--sample", "5%") == (0, "job 12\n", "")
    found = controller.arguments("job.submit")
    assert (found["kind"], found["tag"], found["sample"]) == ("verify", "LTO001L8", "5%")


def cleaners(documents: Any) -> list[Any]:
    shared = documents["cartridge"] | {"status": "cleaning", "node": "tape"}
    return [
        shared | {"tag": "CLN001CU", "location": "slot-1", "detail": "0 cleanings left"},
        shared | {"tag": "CLN002CU", "location": "io-1", "detail": "50 cleanings left"},
        shared | {"tag": "CLN004CU", "location": "slot-3", "detail": "7 cleanings left"},
        shared | {"tag": "CLN003CU", "location": "slot-2", "detail": "50 cleanings left"},
        shared | {"tag": "CLN000CU", "location": "slot-2", "node": "tape2", "detail": "9"},
        documents["cartridge"],
    ]


def test_clean_loads_a_cleaning_cartridge_that_still_can(
    controller: Any, ctl: Any, documents: Any
) -> None:
    controller.answers |= {
        "drive.list": {"drives": [documents["drive"]]},
        "tape.list": {"cartridges": cleaners(documents)},
        "tape.load": documents["cartridge"],
    }
    assert ctl("tape", "clean", "drive-0")[0] == 0
    assert controller.arguments("tape.load") == {"tag": "CLN003CU", "drive": "drive-0"}
    controller.calls.clear()
    assert ctl("tape", "clean", "tape/drive-0", "--tag", "CLN009CU")[0] == 0
    assert controller.arguments("tape.load") == {"tag": "CLN009CU", "drive": "tape/drive-0"}


def test_clean_says_what_is_missing(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers |= {
        "drive.list": {"drives": [documents["drive"]]},
        "tape.list": {"cartridges": cleaners(documents)[:2]},
    }
    code, _, told = ctl("tape", "clean", "drive-0")
    assert code == 4
    assert "no cleaning cartridge that can be used" in told
    code, _, told = ctl("tape", "clean", "drive-7")
    assert code == 4
    assert "no drive is called 'drive-7'" in told
    assert ctl("tape", "clean", "drive-0", "--tag", "LTO001L8")[0] == 2


def test_bench_wants_whole_blocks(controller: Any, ctl: Any) -> None:
    assert ctl("tape", "bench", "--size", "100")[0] == 2
    assert ctl("tape", "bench", "--size", "0")[0] == 2
    assert controller.calls == []
