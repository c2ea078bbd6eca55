"""The report of one job, in the form that operators of Bareos know, with the lines that are ours.

Pure: a JobDetail in, text out.  Ours are the byte ledger per logical unit, whether it balances, and the payload
bytes of the controller, which are 0 by construction and shown so that anybody can see it.
"""

from __future__ import annotations

from typing import Any, Final

from backplane.units import format_duration, format_size
from controller.cli import render
from controller.cli.file_rows import shown_text
from controller.cli.render import Document

ITEMS_SHOWN_MAX: Final = 200
"""More items than this are summed up in a table; JSON always has all."""

TERMINATIONS: Final = {
    "completed": "{kind} OK",
    "partial": "{kind} OK -- with warnings",
    "failed": "*** {kind} Error ***",
    "cancelled": "{kind} Canceled",
}
DAMAGE_SHOWN_MAX: Final = 50
FILES_SHOWN_MAX: Final = 50
FILES_OF_DAMAGE_MAX: Final = 3
HOLES_SHOWN_MAX: Final = 20
REASONS_MAX: Final = 5
REBUILT_SHOWN_MAX: Final = 50
REBUILT_LISTS: Final = {
    "failed": "Cartridges left out",
    "refused": "Refused",
    "incomplete": "Backups of which something is missing",
    "pruned": "Pruned",
    "notes": "Notes",
}
"""What a rebuild lists in words, and how that is headed."""

WAYS: Final = {
    "volume": "to a volume that has the names of all files",
    "staging": "to a staging volume, from which ctl makes them in a folder",
    "in-place": "in place, onto the volume that they came from",
    "placed": "into prepared files of a mounted file system",
}
DONE: Final = frozenset({"completed", "partial"})
MOVED_BY_CTL: Final = frozenset({"import", "export"})
"""Jobs whose data go between an operator's machine and the disk node: no mover keeps a ledger of them."""


def job_report(detail: Document) -> str:
    """Return the whole report."""
    parts = [render.block(_facts(detail))]
    if detail["kind"] not in MOVED_BY_CTL:
        parts.append(_ledger(detail["ledger"]))
    if detail["items"]:
        parts.append(_items(detail))
    if detail["kind"] == "rebuild":
        parts += _rebuilt(detail["result"])
    listed = (detail["result"].get("files") or {}).get("listed") or []
    if listed:
        parts.append(_not_restored(listed, detail["result"]["files"]["failed"]))
    damage = detail["result"].get("damage") or []
    if damage:
        parts.append(_damage(damage, detail["result"].get("damaged_records", len(damage))))
    parts += [_hit(hit) for hit in detail["result"].get("hit") or [] if hit["listed"]]
    parts.append(render.block([("Termination", termination(detail))]))
    return "\n\n".join(part for part in parts if part)


def termination(detail: Document) -> str:
    """Return the last line of a report: how the job ended, or what it is doing or waiting for."""
    state, reason = detail["state"], detail["reason"]
    words = TERMINATIONS.get(state, f"not ended: {state}")
    text = words.format(kind=str(detail["kind"]).capitalize())
    return f"{text} ({reason})" if reason else text


def _facts(detail: Document) -> list[tuple[str, str]]:
    ledger, result = detail["ledger"], detail["result"]
    moved, seconds = detail["bytes_done"], detail["seconds_copying"]
    tapes = [device for device in ledger["devices"] if device["role"] == "tape"]
    to_tape = sum(device["bytes_written"] for device in tapes)
    from_tape = sum(device["bytes_read"] for device in tapes)
    movers = detail.get("movers") or sorted({i["mover"] for i in detail["items"] if i["mover"]})
    facts = [
        ("JobId", str(detail["job"])),
        ("Job", f"{detail['kind']}: {detail['subject']}"),
        ("State", str(detail["state"])),
        ("Volume", str(result.get("volume") or detail["volume"] or "-")),
        ("Backup", str(result.get("backup") or detail["backup"] or "-")),
        *_lanes(detail),
        *_level(result),
        *_needs(result),
        *_map(result),
        *_files(result, is_done=detail["state"] in DONE),
        *_holes(result),
        *_new_in_catalog(result),
        ("Scheduled time", render.local_time(detail["submitted"])),
        ("Start time", render.local_time(detail["started"])),
        ("End time", render.local_time(detail["ended"])),
        ("Elapsed time", format_duration(detail["seconds_elapsed"])),
        ("Bytes", f"{render.exact_size(moved)} of {render.exact_size(detail['total_bytes'])}"),
        ("Rate", f"{render.rate(moved, seconds)} while copying ({format_duration(seconds)})"),
    ]
    if to_tape:
        facts.append(("Written to tape", render.tape_size(to_tape)))
        facts.append(("Under-runs", str(sum(device.get("under_runs", 0) for device in tapes))))
    if from_tape:
        facts.append(("Read from tape", render.tape_size(from_tape)))
    return [
        *facts,
        *_view(detail),
        *([("Pool", str(detail["pool"]))] if detail.get("pool") else []),
        ("Cartridge(s)", ", ".join(_cartridges(detail)) or "-"),
        ("Mover(s)", ", ".join(movers) or "-"),
        ("Work items", str(detail["items_total"])),
        ("Controller payload", f"{ledger['controller_payload_bytes']} bytes"),
        ("Errors", str(detail["error_count"])),
    ]


def _view(detail: Document) -> list[tuple[str, str]]:
    """Say how the static view was asked for and made, and what it was waited for."""
    wait, view = detail.get("wait"), detail.get("view")
    facts = []
    if detail.get("group"):
        facts.append(("Group", "jobs " + ", ".join(str(job) for job in detail["group"])))
    if wait:
        facts += [
            ("Inactivity", f"{wait['quiet_s']:g} s ({wait['quiet_from']})"),
            ("Sync timeout", f"{wait['sync_timeout_s']:g} s ({wait['sync_timeout_from']})"),
        ]
        if wait["asked"]:
            writer = f", last written by {wait['last_writer']}" if wait["last_writer"] else ""
            facts.append(("Waited for quiet", f"{wait['waited_s']:.1f} s{writer}"))
    if view:
        facts.append(("Static view", f"{view['means'] or 'none yet'} (asked for: {view['asked']})"))
    return facts


def _map(result: Document) -> list[tuple[str, str]]:
    """Say what became of the map of a backup: without one, or with half of one, nobody finds files in it."""
    found = result.get("map")
    if not found:
        return []
    if "files" not in found:
        why = found.get("why") or "asked for with --raw"
        return [("Map of files", f"none: {shown_text(why)}")]
    kinds = ", ".join(f"{each['kind']} {each['state']}" for each in found["file_systems"])
    facts = [("Map of files", f"{found['state']}, {found['files']:,} files in {kinds or '-'}")]
    return facts + [
        ("Map incomplete", shown_text(reason)) for reason in found["reasons"][:REASONS_MAX]
    ]


def _files(result: Document, *, is_done: bool) -> list[tuple[str, str]]:
    """Say which way files were restored, and how many; or were to be."""
    files = result.get("files")
    if not files:
        return []
    size = render.exact_size(files["bytes"])
    told = f"{files['restored']} restored, {size}; {files['failed']} not restored"
    facts = [
        ("Files go", WAYS.get(result.get("way", ""), "-")),
        ("Files", told if is_done else f"{files['restored']} to be restored, {size}"),
    ]
    if result.get("attention"):
        facts.append(("Attention", str(result["attention"])))
    return facts


def _not_restored(listed: list[Document], failed: int) -> str:
    columns = [("PATH", render.text_of("path")), ("REASON", render.text_of("reason"))]
    shown = listed[:FILES_SHOWN_MAX]
    text = f"  Not restored:\n{_indented(render.table(columns, shown))}"
    rest = failed - len(shown)
    more = "; --output json has them" if failed == len(listed) else ""
    return f"{text}\n    ... and {rest} more{more}" if rest > 0 else text


def _lanes(detail: Document) -> list[tuple[str, str]]:
    """Name the jobs that work side by side for this one, each with a drive."""
    if not detail.get("lanes"):
        return []
    return [("Lanes", "jobs " + ", ".join(str(job) for job in detail["lanes"]))]


def _level(result: Document) -> list[tuple[str, str]]:
    """Say at which level a backup was made, why not at the one asked for, and what it stands on."""
    if "level" not in result:
        return []
    facts = [("Level", str(result["level"]))]
    if result.get("parent"):
        facts = [("Level", f"{result['level']} on backup {result['parent']}")]
    if result.get("fallback"):
        facts.append(("Full because", str(result["fallback"])))
    if result.get("parents"):
        facts.append(("Stands on", ", ".join(str(number) for number in result["parents"])))
    return facts


def _needs(result: Document) -> list[tuple[str, str]]:
    """Say which cartridges a restore reads, in order."""
    return [("Restore needs", ", ".join(result["needs"]))] if result.get("needs") else []


def _new_in_catalog(result: Document) -> list[tuple[str, str]]:
    """Say how much a rebuild has brought back."""
    if "maps" not in result:
        return []
    counts = ", ".join(f"{result[name]:,} {name}" for name in ("backups", "parts", "maps"))
    return [("New in the catalog", f"{counts} of files")]


def _cartridges(detail: Document) -> list[str]:
    needed = detail["result"].get("needs")
    if detail["kind"] in ("restore", "restore-lane") and needed:
        # Those of its backup alone lack what that stands on, and may not be what was read: there are copies.
        return [str(tag) for tag in needed]
    if detail["kind"] == "lane":
        return [str(tag) for tag in detail["tags"]]  # None before its first part is committed.
    for tags in (detail.get("tags"), detail["result"].get("tags"), _read_back(detail["result"])):
        if tags:
            return [str(tag) for tag in tags]
    return sorted({str(d["name"]) for d in detail["ledger"]["devices"] if d["role"] == "tape"})


def _read_back(result: Document) -> list[str]:
    """Return the cartridges that a rebuild has read."""
    return [str(each["tag"]) for each in result.get("cartridges") or []]


def _rebuilt(result: Document) -> list[str]:
    """Say what a rebuild has read from which cartridge, and what it has not taken in."""
    texts = []
    if cartridges := result.get("cartridges"):
        columns = [
            ("CARTRIDGE", render.text_of("tag")),
            ("READ FROM", render.text_of("way")),
            ("PARTS", render.text_of("parts")),
            ("NEW", render.text_of("new_parts")),
            ("LEFT OUT", render.text_of("left_out")),
        ]
        shown = cartridges[:REBUILT_SHOWN_MAX]
        table = render.table(columns, shown, right=("PARTS", "NEW", "LEFT OUT"))
        texts.append(f"  Cartridges:\n{_indented(table)}{_more(cartridges)}")
    for name, title in REBUILT_LISTS.items():
        if lines := result.get(name):
            listed = "\n".join(f"    {shown_text(line)}" for line in lines[:REBUILT_SHOWN_MAX])
            texts.append(f"  {title}:\n{listed}{_more(lines)}")
    return texts


def _more(lines: list[Any]) -> str:
    rest = len(lines) - REBUILT_SHOWN_MAX
    return f"\n    ... and {rest} more; --output json has them" if rest > 0 else ""


def _ledger(ledger: Document) -> str:
    sums = [
        ("planned", ledger["planned_bytes"]),
        ("read", ledger["read_bytes"]),
        ("written", ledger["written_bytes"]),
        ("padded", ledger["padded_bytes"]),
        ("discarded", ledger["discarded_bytes"]),
        ("residual", ledger["residual_bytes"]),
    ]
    width = max(len(f"{count:,}") for _, count in sums)
    lines = [f"    {name:<10} {count:>{width},}  {format_size(count)}" for name, count in sums]
    verdict = "balanced" if ledger["is_balanced"] else "NOT BALANCED"
    text = "\n".join([f"  Ledger ({verdict}):", *lines])
    if not ledger["devices"]:
        return text
    again = [
        (title, _count_of(key))
        for title, key in (("READ AGAIN", "again_read"), ("WRITTEN AGAIN", "again_written"))
        if any(device.get(key) for device in ledger["devices"])
    ]
    columns = [
        ("LOGICAL UNIT", render.text_of("name")),
        ("ROLE", render.text_of("role")),
        ("DESIGNATOR", render.text_of("designator")),
        *[
            (title, _count_of(key))
            for title, key in (
                ("READ", "bytes_read"),
                ("WRITTEN", "bytes_written"),
                ("PADDED", "bytes_padded"),
                ("DISCARDED", "bytes_discarded"),
                ("RECORDS R", "records_read"),
                ("RECORDS W", "records_written"),
                ("FILEMARKS", "filemarks_written"),
            )
        ],
        *again,
    ]
    numbers = [title for title, _ in columns[3:]]
    table = render.table(columns, ledger["devices"], right=numbers)
    if again:
        table += "\n\nAGAIN: moved by lists that failed and by later ones once more; not in the sums above"
    return f"{text}\n\n{_indented(table)}"


def _count_of(key: str) -> Any:
    return lambda row: f"{row[key]:,}"


def _items(detail: Document) -> str:
    columns = [
        ("ITEM", render.text_of("item")),
        ("PURPOSE", render.text_of("purpose")),
        ("STATE", render.text_of("state")),
        ("MOVER", render.text_of("mover")),
        ("ATTEMPT", render.text_of("attempt")),
        ("EPOCH", render.text_of("epoch")),
        ("STATUS", render.text_of("status")),
        ("SEGMENTS", render.text_of("segments")),
        ("PLANNED", render.size_of("planned_bytes")),
        ("SECONDS", lambda row: f"{row['seconds']:.2f}"),
        ("SENSE", render.text_of("sense_text")),
    ]
    shown = detail["items"][:ITEMS_SHOWN_MAX]
    numbers = ("ITEM", "ATTEMPT", "EPOCH", "SEGMENTS", "PLANNED", "SECONDS")
    text = f"  Work items:\n{_indented(render.table(columns, shown, right=numbers))}"
    rest = detail["items_total"] - len(shown)
    return f"{text}\n    ... and {rest} more; --output json has them all" if rest > 0 else text


def _hit(hit: Document) -> str:
    """Name the files that damage hits."""
    lines = [f"    {path}" for path in hit["listed"][:FILES_SHOWN_MAX]]
    rest = hit["count"] - len(lines)
    if rest > 0:
        more = "; --output json has them" if hit["count"] == len(hit["listed"]) else ""
        lines.append(f"    ... and {rest} more{more}")
    if hit["has_more"]:
        lines.append("    (and blocks that no file has)")
    return "\n".join([f"  Damaged files of backup {hit['backup']}:", *lines])


def _holes(result: Document) -> list[tuple[str, str]]:
    """Say what of a volume is zeros because it could not be read, and what else there is to know."""
    facts = [("Warning", str(words)) for words in result.get("warnings", [])]
    facts += [("Not readable", str(words)) for words in result.get("unreadable", [])]
    facts += [("Not verified", str(each["reason"])) for each in result.get("skipped", [])]
    if sample := result.get("sample"):
        share = (
            f"{sample['records']:,} of {sample['of']:,} records ({sample['asked']} of each part)"
        )
        facts.append(("Sample", f"{share}, seed {sample['seed']}"))
    holes = result.get("holes")
    if not holes:
        return facts
    size = render.exact_size(holes["blocks"] * holes["block_bytes"])
    ranges = [f"{lba}-{lba + blocks - 1}" for lba, blocks in holes["extents"][:HOLES_SHOWN_MAX]]
    rest = holes["count"] - len(ranges)
    more = f" and {rest} more" if rest > 0 else ""
    coarse = " (the nearest as one: ctl job log has each)" if holes.get("is_coarse") else ""
    return [*facts, ("Holes", f"{size} are zeros: LBA {', '.join(ranges)}{more}{coarse}")]


def _damage(damage: list[Document], count: int) -> str:
    columns = [
        ("FIRST LBA", render.text_of("first_lba")),
        ("LAST LBA", lambda row: str(row.get("last_lba", row["first_lba"] + row["blocks"] - 1))),
        ("BLOCKS", render.text_of("blocks")),
        ("CARTRIDGE", render.text_of("tag")),
        ("OBJECT", render.text_of("object")),
        ("FILES", _files_of),
        ("READ INSTEAD", render.text_of("instead")),
        ("REASON", render.text_of("reason")),
    ]
    if not any(row.get("instead") for row in damage):
        columns = [each for each in columns if each[0] != "READ INSTEAD"]
    if not any("files" in row for row in damage):
        columns = [each for each in columns if each[0] != "FILES"]
    shown = damage[:DAMAGE_SHOWN_MAX]
    text = _indented(
        render.table(columns, shown, right=("FIRST LBA", "LAST LBA", "BLOCKS", "OBJECT"))
    )
    rest = max(count, len(damage)) - len(shown)
    more = f"\n    ... and {rest} more; --output json has {len(damage)}" if rest > 0 else ""
    return f"  Damage:\n{text}{more}"


def _files_of(row: Document) -> str:
    files = row.get("files", {"count": 0, "listed": []})
    named = files["listed"][:FILES_OF_DAMAGE_MAX]
    rest = files["count"] - len(named)
    return ", ".join([*named, *([f"{rest} more"] if rest > 0 else [])]) or "-"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))
