"""Nodes may answer anything."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import RemoteProtocolError
from backplane.ids import NodeName
from backplane.wire.messages import NodeReply, ViewState
from controller.core.answers import extents_of, view_of

NODE = NodeName("disk")
REPLY = NodeReply(request=1, boot_id=b"")
VIEW = ViewState(
    view="v" * 32,  # type: ignore[arg-type]
    volume="w" * 32,  # type: ignore[arg-type]
    job=1,  # type: ignore[arg-type]
    designator=b"12345678",  # type: ignore[arg-type]
    blocks=8,
    block_bytes=512,
    means="hold",
    state="active",
    reason="",
)


def test_the_view_that_was_asked_for_is_found_among_others() -> None:
    other = replace(VIEW, view="x" * 32)  # type: ignore[arg-type]
    assert view_of(replace(REPLY, views=(other, VIEW)), VIEW.view, node=NODE) == VIEW


def test_an_answer_without_the_view_is_the_nodes_mistake() -> None:
    with pytest.raises(RemoteProtocolError, match="storage node disk answers without the view"):
        view_of(REPLY, VIEW.view, node=NODE)


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))))
def test_extents_come_as_they_were_packed(pairs: list[tuple[int, int]]) -> None:
    packed = b"".join(struct.pack(">QQ", *pair) for pair in pairs)
    assert extents_of(replace(REPLY, extents=packed), node=NODE) == pairs


@given(st.binary().filter(lambda data: len(data) % 16))
def test_bytes_that_are_no_whole_extents_are_the_nodes_mistake(packed: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="half an extent"):
        extents_of(replace(REPLY, extents=packed), node=NODE)
