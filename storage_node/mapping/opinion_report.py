"""A survey of an image as text, or as JSON: pure.

Names come from the volume, so nothing that a terminal would obey is left in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from backplane.file_map.model import FileSystem
from backplane.units import format_size
from storage_node.mapping.opinion import LIBRARY, Opinion, Outcome, Survey
from storage_node.mapping.opinion_compare import Comparison, Difference

SHOWN_MAX: Final = 50
"""Differences of a file system in a table; the JSON has all that were kept."""
TEXT_MAX: Final = 200


def as_text(survey: Survey) -> str:
    """Return it for people."""
    header = survey.header
    facts = [
        ("image", _printable(survey.image)),
        ("volume", _bytes(header.volume_bytes)),
        ("paths", f"{header.rows}"),
        ("files", f"{header.files}, {_bytes(header.file_bytes)}"),
        ("allocated", _bytes(survey.allocated_bytes)),
        ("reads", f"{header.reads}, {_bytes(header.bytes_read)}"),
        ("complete", "yes" if header.is_complete else "no"),
    ]
    lines = [f"{name:<10} {value}" for name, value in facts]
    lines += [f"  {_printable(reason)}" for reason in header.reasons]
    lines += ["", *_table(header.file_systems)]
    for opinion in survey.opinions:
        lines += ["", *_opinion(opinion)]
    return "\n".join(lines)


def as_json(survey: Survey) -> str:
    """Return it for programs: one object, with what `as_text` shows and all differences that were kept."""
    header = survey.header
    document = header._asdict() | {
        "image": survey.image,
        "allocated_bytes": survey.allocated_bytes,
        "file_systems": [system._asdict() for system in header.file_systems],
        "second_opinions": [_document(opinion) for opinion in survey.opinions],
    }
    del document["row_pages"], document["run_pages"], document["digest"]
    return json.dumps(document, indent=2)


def _document(opinion: Opinion) -> dict[str, Any]:
    system = opinion.file_system
    document: dict[str, Any] = {
        "library": LIBRARY,
        "prefix": system.prefix,
        "kind": system.kind,
        "outcome": opinion.outcome.value,
        "reasons": opinion.reasons,
    }
    comparison = opinion.comparison
    if comparison is not None:
        document |= {
            "paths": comparison.paths,
            "data_compared": comparison.data_compared,
            "data_left": comparison.data_left,
            "counts": {what.value: count for what, count in comparison.counts.items()},
            "differences": [
                one._asdict() | {"path": one.path.decode("utf-8", "surrogateescape")}
                for one in comparison.differences
            ],
        }
    return document


def _table(systems: Sequence[FileSystem]) -> Iterator[str]:
    rows = [("FILE SYSTEM", "PREFIX", "STATE", "SIZE", "LABEL", "PLACE")]
    rows += [
        (
            system.kind,
            system.prefix or "-",
            system.state,
            format_size(system.size_bytes),
            _printable(system.label) or "-",
            _printable(system.place),
        )
        for system in systems
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def _opinion(opinion: Opinion) -> Iterator[str]:
    system = opinion.file_system
    what = f"{system.prefix}, {system.kind}" if system.prefix else system.kind
    if opinion.outcome is Outcome.NONE:
        yield f"{what}: no second opinion for {system.kind}"
        return
    if opinion.outcome is Outcome.FAILED:
        yield f"{what}: {LIBRARY} failed: {_printable('; '.join(opinion.reasons))}"
        return
    assert opinion.comparison is not None
    yield f"{what}: {LIBRARY} {opinion.outcome}: {_summary(opinion.comparison)}"
    if system.state != "clean":
        yield f"  the file system is {system.state}: {LIBRARY} reads it without its journal"
    yield from (f"  {LIBRARY}: {_printable(reason)}" for reason in opinion.reasons)
    yield from _differences(opinion.comparison)


def _summary(found: Comparison) -> str:
    counts = [f"{count} x {what.value}" for what, count in found.counts.items()]
    same = f"{found.paths} paths in both, data of {found.data_compared} files compared"
    left = [f"of {found.data_left} not (inline, compressed, ...)"] if found.data_left else []
    return "; ".join([same, *left, *counts])


def _differences(found: Comparison) -> Iterator[str]:
    for one in found.differences[:SHOWN_MAX]:
        yield f"  {one.what.value}: {_path(one)}{_both(one)}"
    more = sum(found.counts.values()) - min(len(found.differences), SHOWN_MAX)
    if more:
        yield f"  and {more} more"


def _path(one: Difference) -> str:
    return _printable(one.path.decode("utf-8", "backslashreplace") or "/")


def _both(one: Difference) -> str:
    said = [("ours", one.ours), (LIBRARY, one.library)]
    told = [f"{who} {_printable(what) or 'nothing'}" for who, what in said]
    if not one.ours or not one.library:
        told = [f"{_printable(one.ours or one.library)}"] if one.what.startswith("only") else told
    return f": {'; '.join(told)}"


def _printable(text: str) -> str:
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= TEXT_MAX else f"{clean[:TEXT_MAX]}…"


def _bytes(count: int) -> str:
    return f"{format_size(count)} ({count} bytes)"
