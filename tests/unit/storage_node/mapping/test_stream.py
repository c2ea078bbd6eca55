"""What a parser tells: in batches of bounded size, and decoded as what a stranger says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from itertools import takewhile

import pytest

from backplane.file_map.model import FileRow
from backplane.wire.packing import pack
from storage_node.mapping.channel import Channel
from storage_node.mapping.limits import BATCH_EXTENTS, BATCH_ROWS, RUNS_PER_FRAME, TEXT_BYTES_MAX
from storage_node.mapping.row_codec import RowFormatError, decode_rows
from storage_node.mapping.stream import (
    Say,
    Teller,
    decode_facts,
    decode_runs,
    decode_text,
    encode_runs,
)
from tests.site.mapping_parser import FILE_SYSTEM, GOOD, row, synthetic


def told(tell: Callable[[Teller], None]) -> list[tuple[int, bytes]]:
    """Return the frames that a parser sends."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def run() -> None:
            tell(Teller(Channel(theirs)))
            Channel(theirs).send(Say.END)

        thread = threading.Thread(target=run)
        thread.start()
        channel = Channel(ours)
        frames = iter(lambda: channel.receive(bytes_max=1 << 26), None)
        found = list(takewhile(lambda frame: frame[0] != Say.END, frames))
        thread.join()
    return found


def test_rows_are_sent_in_batches() -> None:
    rows = list(synthetic(2 * BATCH_ROWS))
    frames = told(lambda teller: teller.rows(rows))
    batches = [decode_rows(payload) for _, payload in frames]
    assert {kind for kind, _ in frames} == {Say.ROWS}
    assert [len(batch) for batch in batches] == [BATCH_ROWS, BATCH_ROWS, len(rows) - 2 * BATCH_ROWS]
    assert [each for batch in batches for each in batch] == rows


def test_a_batch_of_fragmented_files_is_sent_earlier() -> None:
    many: FileRow = row("f", *((at * 8192, 4096) for at in range(BATCH_EXTENTS)))
    frames = told(lambda teller: teller.rows([many, GOOD[0], many]))
    assert [len(decode_rows(payload)) for _, payload in frames] == [1, 2]


def test_runs_are_sent_in_batches() -> None:
    runs = [(at * 10, at * 10 + 5) for at in range(RUNS_PER_FRAME + 1)]
    frames = told(lambda teller: teller.runs(runs))
    assert [len(decode_runs(payload)) for _, payload in frames] == [RUNS_PER_FRAME, 1]
    assert [run for _, payload in frames for run in decode_runs(payload)] == runs


@pytest.mark.parametrize("payload", [b"x", encode_runs([(1, 2)])[:-1]])
def test_what_are_no_runs_are_refused(payload: bytes) -> None:
    with pytest.raises(RowFormatError):
        decode_runs(payload)


def test_facts_come_as_they_went() -> None:
    system = FILE_SYSTEM._replace(features=("journal", "extents"), label="Größe")
    [(kind, payload)] = told(lambda teller: teller.facts([system, FILE_SYSTEM], ["a note"]))
    assert kind == Say.FACTS
    assert decode_facts(payload) == ([system, FILE_SYSTEM], ["a note"])


def test_a_label_that_is_no_text_is_told_as_one() -> None:
    """NTFS and exFAT have labels of UTF-16, in which half of a character may stand alone."""
    system = FILE_SYSTEM._replace(label="\ud800x", features=("\ud800",))
    [(_, payload)] = told(lambda teller: teller.facts([system], ["\udfff"]))
    assert decode_facts(payload) == (
        [FILE_SYSTEM._replace(label="?x", features=("?",))],
        ["?"],
    )


GOOD_FACTS = list(FILE_SYSTEM)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        pack(7),
        pack([]),
        pack([[], [], []]),
        pack([7, []]),
        pack([[7], []]),
        pack([[[]], []]),
        pack([[["kind"] * 9], []]),
        pack([[GOOD_FACTS[:-1]], []]),
        pack([[[*GOOD_FACTS[:4], -1, *GOOD_FACTS[5:-1], []]], []]),
        pack([[[*GOOD_FACTS[:4], True, *GOOD_FACTS[5:-1], []]], []]),
        pack([[[*GOOD_FACTS[:4], 1 << 63, *GOOD_FACTS[5:-1], []]], []]),
        pack([[[*GOOD_FACTS[:-1], [1]]], []]),
        pack([[[b"kind", *GOOD_FACTS[1:-1], []]], []]),
        pack([[], [1]]),
        pack([[[*GOOD_FACTS[:-1], []]] * 1025, []]),
        pack([[], ["n"] * 1001]),
    ],
)
def test_what_are_no_facts_are_refused(payload: bytes) -> None:
    with pytest.raises(RowFormatError):
        decode_facts(payload)


def test_a_text_is_short_and_cannot_forge_a_line() -> None:
    assert decode_text(b"two\nlines\x1b[31m\xff") == "two?lines?[31m\ufffd"
    assert len(decode_text(b"x" * 10_000)) == TEXT_BYTES_MAX
    [(kind, payload)] = told(lambda teller: teller.say(Say.REASONS, "r" * 10_000))
    assert (kind, len(payload)) == (Say.REASONS, TEXT_BYTES_MAX)
