"""Grants: the body survives the wire, anything else is the one refusal, keys bind node, holder, nonces and boot."""

from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import NotAuthorizedError
from backplane.ids import Designator, Epoch, ItemId, JobId, NodeName
from backplane.wire import grants
from backplane.wire.grants import GRANT_BYTES_MAX, GRANT_EXTENTS_MAX, LANES_MAX, Grant, Rights
from backplane.wire.packing import pack, unpack

GRANT = Grant(
    node=NodeName("node-1"),
    designator=Designator(b"\x30abcdefg"),
    rights=Rights.READ | Rights.WRITE,
    extents=((0, 8), (100, 1)),
    position=0,
    job=JobId(1),
    item=ItemId(2),
    epoch=Epoch(3),
    holder=b"h" * 32,
    ttl_s=60.0,
    bytes_max=1 << 20,
)
numbers = st.integers(0, 2**63 - 1)


@given(
    st.builds(
        Grant,
        node=st.text(max_size=20),
        designator=st.binary(min_size=8, max_size=8),
        rights=st.sampled_from([Rights(n) for n in range(8)]),
        extents=st.lists(st.tuples(numbers, numbers), max_size=5).map(tuple),
        position=numbers,
        job=numbers,
        item=numbers,
        epoch=numbers,
        holder=st.binary(min_size=32, max_size=32),
        ttl_s=st.floats(0.001, 1e6),
        bytes_max=numbers,
        lane=st.integers(0, LANES_MAX),
    )
)
def test_a_grant_survives_the_wire(grant: Grant) -> None:
    assert grants.decode_grant(grants.encode_grant(grant)) == grant


def test_the_largest_grant_fits_its_limit() -> None:
    extents = tuple((2**40 + 2 * n, 2**31) for n in range(GRANT_EXTENTS_MAX))
    body = grants.encode_grant(replace(GRANT, extents=extents))
    assert len(body) <= GRANT_BYTES_MAX
    assert grants.decode_grant(body).extents == extents


@given(st.binary(max_size=200))
def test_any_bytes_are_a_grant_or_refused(body: bytes) -> None:
    with pytest.raises(NotAuthorizedError, match="grant refused"):
        grants.decode_grant(body)


@given(st.integers(0, 200))
def test_a_truncated_body_is_refused(length: int) -> None:
    body = grants.encode_grant(GRANT)
    with pytest.raises(NotAuthorizedError):
        grants.decode_grant(body[: min(length, len(body) - 1)])


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, 1),
        (0, 3),
        (1, b"node-1"),
        (2, b"short"),
        (3, 8),
        (3, True),
        (4, [[0, 1, 2]]),
        (4, [[-1, 1]]),
        (4, [[0, 1]] * (GRANT_EXTENTS_MAX + 1)),
        (4, 7),
        (5, -1),
        (8, "3"),
        (9, b"h" * 31),
        (10, 0.0),
        (10, 60),
        (11, 1.0),
        (12, -1),
        (12, True),
        (12, LANES_MAX + 1),
    ],
)
def test_a_field_that_is_not_as_it_must_be_is_refused(index: int, value: Any) -> None:
    fields = unpack(grants.encode_grant(GRANT))
    fields[index] = value
    with pytest.raises(NotAuthorizedError, match="grant refused"):
        grants.decode_grant(pack(fields))


def test_missing_and_surplus_fields_are_refused() -> None:
    fields = unpack(grants.encode_grant(GRANT))
    for wrong in (fields[:-1], [*fields, 0], {}, 7):
        with pytest.raises(NotAuthorizedError):
            grants.decode_grant(pack(wrong))
    with pytest.raises(NotAuthorizedError):
        grants.decode_grant(bytes(GRANT_BYTES_MAX + 1))


def key_pair() -> tuple[bytes, bytes]:
    secret = X25519PrivateKey.generate()
    return secret.private_bytes_raw(), secret.public_key().public_bytes_raw()


def test_controller_and_node_agree_without_a_message() -> None:
    controller, node = key_pair(), key_pair()
    assert grants.agree(controller[0], node[1]) == grants.agree(node[0], controller[1])


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31), b"short"])
def test_a_key_that_is_none_is_refused(public: bytes) -> None:
    """Low-order points would make the shared secret known to everybody."""
    with pytest.raises(NotAuthorizedError):
        grants.agree(key_pair()[0], public)


def test_the_session_key_depends_on_everything() -> None:
    """A change of tag, holder, either nonce or the boot id gives another key: nothing can be replayed."""
    facts = {
        "tag": b"t" * 32,
        "holder_secret": b"s" * 32,
        "node_nonce": b"n" * 16,
        "mover_nonce": b"m" * 16,
        "boot_id": b"b" * 16,
    }
    keys = {grants.session_key(**facts)}
    for name, value in facts.items():
        keys.add(grants.session_key(**{**facts, name: bytes([value[0] ^ 1]) + value[1:]}))
    assert len(keys) == 6
    assert all(len(key) == 32 for key in keys)


def test_tags_and_proofs_depend_on_body_and_key() -> None:
    body, key = grants.encode_grant(GRANT), b"k" * 32
    tag = grants.grant_tag(body, key=key)
    assert tag != grants.grant_tag(body + b"x", key=key)
    assert tag != grants.grant_tag(body, key=b"K" + key[1:])
    proof = grants.open_proof(key, body)
    assert proof not in (tag, grants.open_proof(b"K" + key[1:], body))
    assert grants.proof_matches(proof, grants.open_proof(key, body))
    assert not grants.proof_matches(proof[:-1], proof)
