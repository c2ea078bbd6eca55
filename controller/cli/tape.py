"""`ctl tape`: cartridges, and what is done with them by hand."""

from __future__ import annotations

from collections.abc import Sequence

import click

from backplane.errors import BackupError, ExitCode, NotFoundError, UsageError
from controller.cli import render
from controller.cli.client import Client, connect, new_token
from controller.cli.drive import drive_table
from controller.cli.follow import Caller, follow_jobs, worst
from controller.cli.forget import forget
from controller.cli.options import SIZE, Group, Settings
from controller.cli.render import Document, Screen
from controller.cli.submit import run_verify
from controller.cli.tape_bench import run_bench

CAPACITY = "16GiB"
BENCH_SIZE = "1GiB"
CLEANING_PREFIX = "CLN"
NO_CARTRIDGES = "no cartridges; `ctl tape add` adds one"
STATUSES = ("blank", "writable", "full", "error", "retired", "cleaning")
ALL_STATUSES = (*STATUSES, "worm", "foreign", "quarantined")


@click.group(cls=Group)
def tape() -> None:
    """Look at cartridges, label them, keep them, bring them in and out.

    What may be done with a cartridge is its status; where it is is its location. docs/media.md has both.
    """


tape.add_command(forget)


# --- looking --------------------------------------------------------------------------------------


@tape.command("list", examples=["ctl tape list", "ctl tape list --pool weekly --status full"])
@click.option(
    "--pool", default="", help="Only cartridges of this pool; `scratch` for those of none."
)
@click.option("--status", type=click.Choice(ALL_STATUSES), help="Only cartridges of this status.")
@click.pass_obj
def list_(settings: Settings, pool: str, status: str | None) -> None:
    """List cartridges with their status, location, pool and retention."""
    with connect(settings) as client:
        document = client.call("tape.list")
    rows = [
        row
        for row in document["cartridges"]
        if pool in ("", row["pool"] or "scratch") and status in (None, row["status"])
    ]
    is_filtered = len(rows) < len(document["cartridges"])
    empty = "no cartridge is of this pool and status" if is_filtered else NO_CARTRIDGES
    document = {"cartridges": rows}
    Screen(settings.output).show(
        document, table=lambda: cartridge_table(document, empty=empty), rows="cartridges"
    )


@tape.command(examples=["ctl tape show LTO001L8"])
@click.argument("tag")
@click.pass_obj
def show(settings: Settings, tag: str) -> None:
    """Show the cartridge with barcode TAG and the parts on it."""
    with connect(settings) as client:
        document = client.call("tape.show", tag=tag)
    Screen(settings.output).show(document, table=lambda: cartridge_page(document))


@tape.command(examples=["ctl tape status"])
@click.pass_obj
def status(settings: Settings) -> None:
    """Show the drives, what is in them, and what jobs ask of operators."""
    with connect(settings) as client:
        document = client.call("tape.status")
    Screen(settings.output).show(document, table=lambda: status_page(document))


@tape.command(examples=["ctl tape inventory"])
@click.option("--node", default="", help="Only the library of this tape node.")
@click.pass_obj
def inventory(settings: Settings, node: str) -> None:
    """Show which element of which library holds what, as the nodes last said; `ctl tape scan` has them look again."""
    with connect(settings) as client:
        cartridges = client.call("tape.list")["cartridges"]
        drives = client.call("drive.list")["drives"]
    document = {"elements": elements(cartridges, drives, node=node)}
    if node and not document["elements"]:
        raise NotFoundError(f"no library of a node {node!r} is known", hint="ctl node list")
    Screen(settings.output).show(document, table=lambda: element_table(document), rows="elements")


@tape.command(examples=["ctl tape scan"])
@click.option("--node", default="", help="Only the library of this tape node.")
@click.pass_obj
def scan(settings: Settings, node: str) -> None:
    """Have libraries look through all their elements anew."""
    with connect(settings) as client:
        document = client.call("tape.scan", node=node)
    Screen(settings.output).show(
        document, table=lambda: f"scanned: {', '.join(document['nodes']) or 'no tape node is here'}"
    )


# --- new cartridges and labels --------------------------------------------------------------------


@tape.command(
    examples=["ctl tape add LTO005L8 --capacity 12TB", "ctl tape add LTO006L8 --pool weekly"]
)
@click.argument("tag")
@click.option(
    "--capacity", type=SIZE, default=CAPACITY, show_default=True, help="Capacity of the cartridge."
)
@click.option("--node", default="", help="Tape node. [default: the first by name]")
@click.option("--pool", default="", help="Pool that it belongs to from now on. [default: scratch]")
@click.option("--worm", is_flag=True, help="Write once, read many: it is never erased.")
@click.pass_obj
def add(settings: Settings, tag: str, capacity: float, node: str, pool: str, worm: bool) -> None:
    """Add a blank virtual cartridge with barcode TAG, such as LTO005L8, to the library."""
    with connect(settings) as client:
        document = client.call(
            "tape.add", tag=tag, capacity_bytes=int(capacity), node=node, pool=pool, worm=worm
        )
    _show_one(settings, document)


_wait = click.option(
    "--wait", is_flag=True, help="Watch the job until it ends; exit with the job's code."
)
_pool = click.option(
    "--pool", default="", help="Pool that the label is for. [default: the cartridge's, or scratch]"
)


@tape.command(examples=["ctl tape label LTO005L8 --pool weekly --wait"])
@click.argument("tag")
@_pool
@click.option(
    "--force",
    is_flag=True,
    help="Also if it is foreign or in error. Never if a backup of ours, a retention or a hold is on it.",
)
@_wait
@click.pass_obj
def label(settings: Settings, tag: str, pool: str, force: bool, wait: bool) -> int:
    """Write a label on the cartridge TAG, and erase what nobody wants any more.

    A cartridge with data that somebody may want is refused, and why is said.
    """
    with connect(settings) as client:
        job = run_label(client, tag=tag, pool=pool, force=force)
        return _finish(client, [job], settings=settings, wait=wait)


@tape.command("barcode-label", examples=["ctl tape barcode-label --pool weekly --wait"])
@_pool
@_wait
@click.pass_obj
def barcode_label(settings: Settings, pool: str, wait: bool) -> int:
    """Write labels on all blank cartridges that are in a library, each by its barcode."""
    with connect(settings) as client:
        rows = client.call("tape.list")["cartridges"]
        tags = [row["tag"] for row in rows if row["status"] == "blank" and _is_here(row)]
        jobs, refused = [], list[int]()
        for tag in tags:
            try:
                jobs.append(run_label(client, tag=tag, pool=pool, force=False))
            except BackupError as error:
                refused.append(int(error.exit_code))
                Screen(settings.output).talk(f"ctl: {tag} is not labelled: {error}")
        if not jobs:
            Screen(settings.output).talk("no cartridge is blank" if not tags else "nothing is done")
            return worst(refused) if refused else int(ExitCode.OK)
        return worst([*refused, _finish(client, jobs, settings=settings, wait=wait)])


def _is_here(row: Document) -> bool:
    return not (row["location"] == "offline" or row["location"].startswith("vault "))


# --- moving ---------------------------------------------------------------------------------------


@tape.command(examples=["ctl tape load LTO001L8", "ctl tape load LTO001L8 --drive tape/drive-1"])
@click.argument("tag")
@click.option("--drive", default="", help="DRIVE or NODE/DRIVE. [default: a free one]")
@click.pass_obj
def load(settings: Settings, tag: str, drive: str) -> None:
    """Put the cartridge TAG into a drive. A drive that a job has is refused."""
    with connect(settings) as client:
        _show_one(settings, client.call("tape.load", tag=tag, drive=drive))


@tape.command(examples=["ctl tape unload LTO001L8", "ctl tape unload drive-0"])
@click.argument("name", metavar="TAG|DRIVE")
@click.pass_obj
def unload(settings: Settings, name: str) -> None:
    """Take a cartridge out of its drive and back into a slot. A drive that a job has is refused."""
    with connect(settings) as client:
        document = client.call("tape.unload", name=name)
    if "tag" in document and "status" in document:
        _show_one(settings, document)
        return
    Screen(settings.output).show(document, table=lambda: drive_table({"drives": [document]}))


@tape.command("export", examples=["ctl tape export LTO001L8"])
@click.argument("tag")
@click.pass_obj
def export(settings: Settings, tag: str) -> None:
    """Bring the cartridge TAG to an import/export element, where it may be taken out."""
    with connect(settings) as client:
        _show_one(settings, client.call("tape.export", tag=tag))


@tape.command("import", examples=["ctl tape import LTO001L8"])
@click.argument("tag")
@click.pass_obj
def import_(settings: Settings, tag: str) -> None:
    """Bring the cartridge TAG from an import/export element into a slot."""
    with connect(settings) as client:
        _show_one(settings, client.call("tape.import", tag=tag))


@tape.command(examples=["ctl tape vault LTO001L8 bank-3", "ctl tape vault LTO001L8 ''"])
@click.argument("tag")
@click.argument("name")
@click.pass_obj
def vault(settings: Settings, tag: str, name: str) -> None:
    """Say where the cartridge TAG is when no library has it: in vault NAME. An empty NAME takes that back."""
    with connect(settings) as client:
        document = client.call("tape.vault", tag=tag, vault=name)
        _show_one(settings, document)
    if document["vault"] and _is_here(document):
        Screen(settings.output).talk(
            f"ctl: {tag} is at {document['location']} still; it counts as in vault {document['vault']} once it is out"
        )


# --- trying and cleaning --------------------------------------------------------------------------


@tape.command(examples=["ctl tape verify LTO001L8 --wait", "ctl tape verify LTO001L8 --sample 200"])
@click.argument("tag")
@click.option(
    "--sample",
    metavar="N%|COUNT",
    default="",
    help="Read only so many records of each part. [default: every record]",
)
@_wait
@click.pass_obj
def verify(settings: Settings, tag: str, sample: str, wait: bool) -> int:
    """Read all that is on the cartridge TAG and check it: `ctl submit verify --tape TAG`."""
    chosen = {"sample": sample} if sample else {}
    with connect(settings) as client:
        job = run_verify(client, tag=tag, **chosen)
        return _finish(client, [job], settings=settings, wait=wait)


@tape.command(examples=["ctl tape clean drive-0"])
@click.argument("drive")
@click.option("--tag", default="", help="Cleaning cartridge. [default: one that is left]")
@click.pass_obj
def clean(settings: Settings, drive: str, tag: str) -> None:
    """Clean DRIVE (DRIVE or NODE/DRIVE) with a cleaning cartridge, which goes back to its slot."""
    with connect(settings) as client:
        _show_one(settings, run_clean(client, drive=drive, tag=tag))


@tape.command(examples=["ctl tape bench", "ctl tape bench --size 4GiB --drive drive-1"])
@click.option("--drive", default="", help="DRIVE or NODE/DRIVE. [default: a free one]")
@click.option(
    "--size",
    type=SIZE,
    default=BENCH_SIZE,
    show_default=True,
    help="Random data to write; a real drive needs more than its buffer of about 1 GiB.",
)
@click.pass_obj
def bench(settings: Settings, drive: str, size: float) -> int:
    """Measure how fast a volume goes to tape and is read back here.

    Makes a volume of random data, backs it up to a scratch cartridge, verifies the backup, and removes all of it again;
    the cartridge is scratch as before.
    """
    count = int(size)
    if not count or count % 512:
        raise UsageError("the size has to be a whole number of blocks of 512 bytes")
    with connect(settings) as client:
        return run_bench(client, size_bytes=count, drive=drive, screen=Screen(settings.output))


# --- keeping --------------------------------------------------------------------------------------


@tape.command(examples=["ctl tape protect LTO001L8 --reason 'lawsuit 7'"])
@click.argument("tag")
@click.option("--reason", required=True, help="Why; everybody who asks will read it.")
@click.pass_obj
def protect(settings: Settings, tag: str, reason: str) -> None:
    """Hold the cartridge TAG: nobody erases it, whatever its retention says, until it is let go."""
    with connect(settings) as client:
        _show_one(settings, client.call("tape.protect", tag=tag, reason=reason))


@tape.command(examples=["ctl tape unprotect LTO001L8"])
@click.argument("tag")
@click.pass_obj
def unprotect(settings: Settings, tag: str) -> None:
    """Let the cartridge TAG go. Its retention goes on to its end.

    Of one that is away its node does not hear: if it comes back it is held still, and is let go once more.
    """
    with connect(settings) as client:
        document = client.call("tape.unprotect", tag=tag)
        _show_one(settings, document)
    if not _is_here(document):
        Screen(settings.output).talk(
            f"ctl: {tag} is {document['location']}: should it come back, its node holds it still; unprotect it then"
        )


@tape.command(examples=["ctl tape retire LTO001L8"])
@click.argument("tag")
@click.pass_obj
def retire(settings: Settings, tag: str) -> None:
    """Never write the cartridge TAG again; it is still read."""
    _set(settings, tag, status="retired")


@tape.command(
    "set-status",
    examples=[
        "ctl tape set-status LTO001L8 writable",
        "ctl tape set-status LTO001L8 writable --node tape2",
    ],
)
@click.argument("tag")
@click.argument("status", type=click.Choice(STATUSES))
@click.option(
    "--node", default="", help="The tape node that it was moved to and is at home at now."
)
@click.pass_obj
def set_status(settings: Settings, tag: str, status: str, node: str) -> None:
    """Say what the cartridge TAG is after all: the right one of two, good again, or full."""
    _set(settings, tag, status=status, node=node)


@tape.command("set-pool", examples=["ctl tape set-pool LTO005L8 weekly"])
@click.argument("tag")
@click.argument("pool")
@click.pass_obj
def set_pool(settings: Settings, tag: str, pool: str) -> None:
    """Give the cartridge TAG, which has no data, to a pool, or to `scratch`."""
    _set(settings, tag, pool=pool)


# --- shared ---------------------------------------------------------------------------------------


def run_label(client: Client, *, tag: str, pool: str, force: bool) -> int:
    """Submit a label job and return its number."""
    answer = client.call(
        "job.submit", token=new_token(), kind="label", tag=tag, pool=pool, force=force
    )
    return int(answer["job"])


def run_clean(client: Caller, *, drive: str, tag: str) -> Document:
    """Clean a drive; without a tag, with the first cleaning cartridge of its library that still can."""
    if not tag:
        drives = client.call("drive.list")["drives"]
        found = [each for each in drives if drive in (each["drive"], each["name"])]
        nodes = {each["node"] for each in found}
        if not found:
            raise NotFoundError(f"no drive is called {drive!r}", hint="ctl drive list shows them")
        if len(found) > 1:
            raise UsageError(
                f"{len(found)} drives are called {drive}", hint="NODE/DRIVE; ctl drive list"
            )
        tags = [
            row["tag"]
            for row in client.call("tape.list")["cartridges"]
            if row["status"] == "cleaning"
            and row["node"] in nodes
            and row["location"].startswith("slot-")
            and not row["detail"].startswith("0 ")
        ]
        if not tags:
            raise NotFoundError(
                f"no cleaning cartridge that can be used is in the library of {found[0]['node']}",
                hint="ctl tape add CLN001CU; barcodes of cleaning cartridges begin with CLN",
            )
        tag = min(tags)
    if not tag.startswith(CLEANING_PREFIX):
        raise UsageError(f"{tag} is no cleaning cartridge: its barcode would begin with CLN")
    return client.call("tape.load", tag=tag, drive=drive)


def _finish(client: Client, jobs: Sequence[int], *, settings: Settings, wait: bool) -> int:
    screen = Screen(settings.output)
    if wait:
        return follow_jobs(client, jobs, screen=screen)
    document = {"jobs": [{"job": job} for job in jobs]}
    screen.show(document, table=lambda: "\n".join(f"job {job}" for job in jobs), rows="jobs")
    return int(ExitCode.OK)


def _set(settings: Settings, tag: str, **changes: str) -> None:
    with connect(settings) as client:
        _show_one(settings, client.call("tape.set", tag=tag, **changes))


def _show_one(settings: Settings, document: Document) -> None:
    Screen(settings.output).show(
        document, table=lambda: cartridge_table({"cartridges": [document]})
    )


# --- rendering ------------------------------------------------------------------------------------


def retention(text: str) -> str:
    """Show until when something is kept."""
    return "for ever" if text.startswith("9999-") else render.local_time(text)


def cartridge_table(document: Document, *, empty: str = NO_CARTRIDGES) -> str:
    """Render a list of cartridges."""
    columns = [
        ("CARTRIDGE", render.text_of("tag")),
        ("STATUS", render.text_of("status")),
        ("LOCATION", render.text_of("location")),
        ("POOL", lambda row: str(row["pool"] or "scratch")),
        ("RETAIN", _kept),
        ("NODE", render.text_of("node")),
        ("USED", used),
        ("CAPACITY", lambda row: render.tape_size(row["capacity_bytes"])),
        ("PARTS", render.text_of("parts")),
        ("DETAIL", lambda row: "; ".join(filter(None, [row["detail"], *protections(row)])) or "-"),
    ]
    return render.table(
        columns,
        document["cartridges"],
        right=("USED", "CAPACITY", "PARTS"),
        empty=empty,
    )


PROTECTIONS = (
    ("is_worm", "WORM"),
    ("is_write_protected", "write protected"),
    ("is_out_of_space", "no room on the disk below"),
)


def protections(row: Document) -> list[str]:
    """Return what keeps a cartridge from being written whatever its status is."""
    return [words for name, words in PROTECTIONS if row[name]]


def used(row: Document) -> str:
    """Show what is taken of the capacity; while no library has it, what its parts hold before compression."""
    is_exact = row["is_used_known"] or not row["used_bytes"]
    return f"{'' if is_exact else '~'}{render.tape_size(row['used_bytes'])}"


def _kept(row: Document) -> str:
    return "held" if row["hold"] else retention(row["retain_until"])


def cartridge_page(document: Document) -> str:
    """Render one cartridge with its parts."""
    facts = render.block(
        [
            ("Cartridge", str(document["tag"])),
            ("Status", str(document["status"])),
            ("Detail", str(document["detail"] or "-")),
            ("Location", _place(document)),
            ("Pool", str(document["pool"] or "- (scratch)")),
            ("Retained until", retention(document["retain_until"])),
            ("Held", str(document["hold"] or "-")),
            ("Protection", ", ".join(protections(document)) or "-"),
            ("First written", render.local_time(document["first_written"])),
            ("Last written", render.local_time(document["last_written"])),
            ("Identifier", str(document["cartridge"] or "- (no label of ours)")),
            ("Used", used(document)),
            ("Compression", ratio(document)),
            ("Capacity", render.tape_size(document["capacity_bytes"])),
            ("End of data", f"object {document['end']}"),
            ("Generation", str(document["generation"])),
            ("Loads", str(document["loads"])),
            ("Errors", f"{document['read_errors']} read, {document['write_errors']} write"),
            ("TapeAlert", ", ".join(document["alerts"]) or "-"),
        ]
    )
    columns = [
        ("SEQUENCE", render.text_of("sequence")),
        ("BACKUP", render.text_of("backup")),
        ("VOLUME", render.text_of("volume")),
        ("PART", render.text_of("part")),
        ("HEADER", render.text_of("header_object")),
        ("DATA", render.text_of("data_object")),
        ("TRAILER", render.text_of("trailer_object")),
        ("RECORDS", render.text_of("records")),
        ("BYTES", lambda row: render.tape_size(row["stream_bytes"])),
    ]
    numbers = [title for title, _ in columns if title != "VOLUME"]
    return f"{facts}\n\n{render.table(columns, document['parts_detail'], right=numbers, empty='no parts')}"


def _place(document: Document) -> str:
    if not _is_here(document):
        return str(document["location"])
    noted = f"; noted for vault {document['vault']}" if document["vault"] else ""
    return f"{document['location']} of {document['node']}{noted}"


def status_page(document: Document) -> str:
    """Render drives, requests to operators, and how many cartridges have which status."""
    counts = ", ".join(f"{count} {name}" for name, count in document["cartridges"].items())
    asked = render.table(
        [("JOB", render.text_of("job")), ("WAITS FOR", render.text_of("request"))],
        document["requests"],
        right=("JOB",),
        empty="no job waits for an operator",
    )
    return f"{drive_table(document)}\n\n{asked}\n\ncartridges: {counts or 'none'}"


def elements(
    cartridges: Sequence[Document], drives: Sequence[Document], *, node: str = ""
) -> list[Document]:
    """Return what is in which element: drives, full or empty, then what else holds a cartridge."""
    by_tag = {row["tag"]: row for row in cartridges}
    found: list[Document] = [
        {
            "node": drive["node"],
            "element": drive["drive"],
            "tag": drive["tag"],
            **_brief(by_tag.get(drive["tag"])),
        }
        for drive in drives
    ]
    inside = {(each["node"], each["element"]) for each in found}
    for row in cartridges:
        place = (row["node"], row["location"])
        if _is_here(row) and place not in inside:
            found.append(
                {"node": row["node"], "element": row["location"], "tag": row["tag"], **_brief(row)}
            )
    found = [each for each in found if node in ("", each["node"])]
    return sorted(found, key=lambda each: (each["node"], *_natural(each["element"])))


def _brief(row: Document | None) -> Document:
    return {name: row[name] if row is not None else "" for name in ("status", "pool", "detail")}


def _natural(element: str) -> tuple[str, int]:
    kind, _, number = element.partition("-")
    return kind, int(number) if number.isdecimal() else -1


def element_table(document: Document) -> str:
    """Render what is in which element."""
    columns = [
        ("NODE", render.text_of("node")),
        ("ELEMENT", render.text_of("element")),
        ("CARTRIDGE", render.text_of("tag")),
        ("STATUS", render.text_of("status")),
        ("POOL", render.text_of("pool")),
        ("DETAIL", render.text_of("detail")),
    ]
    return render.table(columns, document["elements"], empty="no library is here")


def ratio(document: Document) -> str:
    """Say what compression makes of the records on a cartridge."""
    used, records = document["used_bytes"], document["record_bytes"]
    return f"{records / used:.2f}:1" if used and records > used else "none"
