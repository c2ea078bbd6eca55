"""What operators may ask for: every verb with its arguments, and the check of a call's arguments against it.

`docs/operator-interface.md` says what verbs and arguments mean.  Arguments are JSON from outside: nothing is taken that
is not in the table, of its type and within its limits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from backplane.errors import UsageError
from controller.core.chain import FULL
from controller.core.inactivity import UNSET
from controller.core.pools import CONTINUE
from controller.core.views import MEANS

TEXT_MAX: Final = 4096
TOKEN_MAX: Final = 128
SECONDS_MAX: Final = 86400
LIST_MAX: Final = 1000
INTEGER_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a verb.  One without a default is required."""

    kind: type
    default: Any = None


_TEXT = Argument(str, "")
_NAME = Argument(str)
_TOKEN = Argument(str)
_NUMBER = Argument(int)
_LIST = Argument(list, [])
_UNSET = Argument(float, UNSET)

VERBS: Final[dict[str, dict[str, Argument]]] = {
    "controller.status": {},
    "job.submit": {
        "token": _TOKEN,
        "kind": _NAME,
        "volume": _TEXT,
        "group": _LIST,
        "quiet_s": _UNSET,
        "sync_timeout_s": _UNSET,
        "view": Argument(str, MEANS[0]),
        "level": Argument(str, FULL),
        "paths": _LIST,
        "excludes": _LIST,
        "raw": Argument(bool, False),
        "backup": _TEXT,
        "to": _TEXT,
        "new": _TEXT,
        "force": Argument(bool, False),
        "staging": Argument(bool, False),
        "check": Argument(bool, True),
        "placed": _LIST,
        "onto": _LIST,
        "keep_going": Argument(bool, False),
        "sample": _TEXT,
        "pool": _TEXT,
        "no_wait_media": Argument(bool, False),
        "drives": Argument(int, 0),
        "drive": _TEXT,
        "tag": _TEXT,
    },
    "restore.renew": {"job": _NUMBER},
    "catalog.show": {},
    "catalog.check": {},
    "catalog.accept": {},
    "catalog.rebuild": {
        "token": _TOKEN,
        "tags": _LIST,
        "all": Argument(bool, False),
        "adopt": Argument(bool, False),
        "with_pruned": Argument(bool, False),
    },
    "job.list": {"limit": Argument(int, 100), "state": _TEXT},
    "job.show": {"job": _NUMBER, "items_from": Argument(int, 0), "items_max": Argument(int, 64)},
    "job.log": {"job": _NUMBER, "after": Argument(int, 0)},
    "job.cancel": {"job": _NUMBER},
    "backup.list": {"volume": _TEXT},
    "backup.show": {"backup": _NAME},
    "backup.changes": {"before": _NAME, "after": _NAME},
    "backup.retention": {
        "volumes": _LIST,
        "pool": _TEXT,
        **{
            name: Argument(int, 0)
            for name in ("last", "hourly", "daily", "weekly", "monthly", "yearly")
        },
        "within_s": Argument(int, 0),
    },
    "backup.prune": {"backups": _LIST},
    "backup.protect": {"backup": _NUMBER, "protected": Argument(bool)},
    "map.header": {"backup": _NAME},
    "map.pages": {"backup": _NAME, "first": Argument(int, 0), "under": _TEXT},
    "volume.create": {
        "token": _TOKEN,
        "name": _NAME,
        "size_bytes": _NUMBER,
        "block_bytes": Argument(int, 512),
        "node": _TEXT,
    },
    "volume.attach": {
        "token": _TOKEN,
        "name": _NAME,
        "path": _NAME,
        "block_bytes": Argument(int, 512),
        "node": _TEXT,
    },
    "volume.list": {},
    "volume.show": {"name": _NAME},
    "volume.set": {
        "name": _NAME,
        "quiet_s": _UNSET,
        "sync_timeout_s": _UNSET,
        "reset": _LIST,
    },
    "volume.quiet": {"name": _NAME},
    "volume.mirror": {"name": _NAME, "action": _NAME, "leg": _NAME, "path": _TEXT},
    "view.create": {
        "token": _TOKEN,
        "name": _NAME,
        "means": Argument(str, MEANS[0]),
        "quiet_s": Argument(float, 0.0),
        "sync_timeout_s": Argument(float, 10.0),
        "ttl_s": Argument(float, 86400.0),
    },
    "view.list": {},
    "view.release": {"view": _NAME},
    "volume.delete": {"name": _NAME, "force": Argument(bool, False)},
    "volume.import_begin": {
        "token": _TOKEN,
        "name": _NAME,
        "size_bytes": _NUMBER,
        "block_bytes": Argument(int, 512),
        "node": _TEXT,
        "holder": _TEXT,
    },
    "volume.import_end": {"name": _NAME, "ok": Argument(bool)},
    "volume.export_begin": {"token": _TOKEN, "name": _NAME, "holder": _TEXT},
    "volume.export_end": {"view": _NAME},
    "volume.extents": {"designator": _NAME, "start_lba": Argument(int, 0)},
    "node.list": {},
    "mover.list": {},
    "tape.list": {},
    "tape.show": {"tag": _NAME},
    "tape.add": {
        "tag": _NAME,
        "capacity_bytes": _NUMBER,
        "node": _TEXT,
        "pool": _TEXT,
        "worm": Argument(bool, False),
    },
    "tape.status": {},
    "tape.scan": {"node": _TEXT},
    "tape.load": {"tag": _NAME, "drive": _TEXT},
    "tape.unload": {"name": _NAME},
    "tape.export": {"tag": _NAME},
    "tape.import": {"tag": _NAME},
    "tape.protect": {"tag": _NAME, "reason": _NAME},
    "tape.unprotect": {"tag": _NAME},
    "tape.set": {"tag": _NAME, "status": _TEXT, "node": _TEXT, "pool": _TEXT},
    "tape.vault": {"tag": _NAME, "vault": _TEXT},
    "tape.losses": {"tag": _NAME, "retained": Argument(bool, False)},
    "tape.forget": {
        "tag": _NAME,
        "consent": _TEXT,
        "retained": Argument(bool, False),
        "unseen": Argument(bool, False),
    },
    "drive.list": {},
    "drive.down": {"drive": _NAME, "reason": _NAME},
    "drive.up": {"drive": _NAME},
    "schedule.create": {"name": _NAME, "calendar": _NAME, "arguments": _NAME},
    "schedule.list": {},
    "schedule.show": {"name": _NAME},
    "schedule.delete": {"name": _NAME},
    "schedule.enable": {"name": _NAME, "enabled": Argument(bool)},
    "schedule.run": {"token": _TOKEN, "name": _NAME},
    "pool.create": {
        "name": _NAME,
        "retain": Argument(str, "0"),
        "allocation": Argument(str, CONTINUE),
        "scratch": Argument(bool, True),
    },
    "pool.list": {},
    "pool.show": {"name": _NAME},
    "pool.set": {"name": _NAME, "retain": _TEXT, "allocation": _TEXT, "scratch": _TEXT},
    "pool.delete": {"name": _NAME},
}
"""Every verb with its arguments; `docs/operator-interface.md` says what they mean."""


def parse_arguments(verb: str, raw: bytes) -> dict[str, Any]:
    """Decode and check a call's arguments; raises `UsageError` that names what is wrong."""
    schema = VERBS.get(verb)
    if schema is None:
        raise UsageError(
            f"no verb {verb!r}", hint="ctl and controller may be of different releases"
        )
    try:
        given = json.loads(raw or b"{}")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{verb}: the arguments are no JSON") from error
    if type(given) is not dict:
        raise UsageError(f"{verb}: the arguments are no object")
    unknown = sorted(set(given) - set(schema))
    if unknown:
        raise UsageError(f"{verb}: unknown argument {', '.join(unknown)}")
    return {name: _checked(verb, name, argument, given) for name, argument in schema.items()}


def scheduled_arguments(text: str) -> dict[str, Any]:
    """Return what a schedule submits, complete, from the JSON that was given for it; raises `UsageError`.

    What an earlier release has stored is completed the same way.
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError("the arguments of the schedule are no JSON") from error
    if type(given) is not dict or "token" in given:
        raise UsageError("the arguments of the schedule are those of job.submit without a token")
    # What says `not given`, such as a time of -1, is stored as well, and is nothing that may be given.
    defaults = [(name, argument.default) for name, argument in VERBS["job.submit"].items()]
    for name, default in defaults:
        if name in given and type(given[name]) is type(default) and given[name] == default:
            del given[name]
    found = parse_arguments("job.submit", json.dumps(given | {"token": "-"}).encode())
    del found["token"]
    return found


def _checked(verb: str, name: str, argument: Argument, given: dict[str, Any]) -> Any:
    if name not in given:
        if argument.default is None:
            raise UsageError(f"{verb}: argument {name} is missing")
        return argument.default
    value = given[name]
    if type(value) is int and not 0 <= value <= INTEGER_MAX:
        raise UsageError(f"{verb}: argument {name} is out of range")
    if argument.kind is float and type(value) is int:
        value = float(value)
    if type(value) is not argument.kind:
        raise UsageError(f"{verb}: argument {name} has to be {argument.kind.__name__}")
    if type(value) is float and not 0 <= value <= SECONDS_MAX:
        raise UsageError(f"{verb}: argument {name} is out of range")
    if type(value) is str:
        _check_text(verb, name, value)
    if type(value) is list:
        _check_list(verb, name, value)
    return value


def _check_list(verb: str, name: str, value: list[Any]) -> None:
    if any(type(entry) is not str for entry in value):
        raise UsageError(f"{verb}: argument {name} has to be list of str")
    if len(value) > LIST_MAX:
        raise UsageError(f"{verb}: argument {name} is too long")
    for entry in value:
        _check_text(verb, name, entry)


def _check_text(verb: str, name: str, value: str) -> None:
    if len(value) > (TOKEN_MAX if name == "token" else TEXT_MAX):
        raise UsageError(f"{verb}: argument {name} is too long")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can write half a character; neither the catalog nor the wire can.
        raise UsageError(f"{verb}: argument {name} is no text") from error
    if "\0" in value:
        raise UsageError(f"{verb}: argument {name} is no text")
    if name == "token" and not value:
        raise UsageError(f"{verb}: argument token is empty")
    if name == "designator" and not (len(value) == 16 and _is_hex(value)):
        raise UsageError(f"{verb}: a designator is 16 hexadecimal digits")


def _is_hex(text: str) -> bool:
    return all(character in "0123456789abcdef" for character in text)
