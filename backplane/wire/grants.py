"""Grants: what one work item may do at one node, and the proof that the right mover asks.

A grant is a msgpack body plus a tag.  The *body* travels openly; the *tag* (HMAC-SHA256 under a key that only
the controller and that one node can compute) reaches the mover inside the CURVE-encrypted control plane and
is never sent on a data socket.  It is a capability key in the manner of T10 OSD: whoever knows it may derive the
session key with which each request of a connection is authenticated.

    node key    K = HKDF(X25519(controller, node), "grant key")       no secret is ever distributed
    tag           = HMAC(K, body)
    holder        = X25519(mover, node)                               only the mover named in the body
    session key   = HKDF(tag | holder, salt = node nonce | mover nonce | boot id)

So a stolen node key forges grants for that node only, a grant read off the wire is useless without the tag, and
a tag that leaks is useless without the mover's own CURVE secret key (holder of key).  A session key is bound to
the node's boot id: nothing sent before a restart is valid after it.

Revocation is by epoch: a node refuses a grant whose epoch is below the fence floor of the logical unit.
The time to live is counted by the node's monotonic clock from first use; wall clocks play no part.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from backplane.errors import NotAuthorizedError
from backplane.ids import Designator, Epoch, ItemId, JobId, NodeName
from backplane.wire.packing import PackingError, pack, unpack

GRANT_VERSION: Final = 2
GRANT_BYTES_MAX: Final = 64 * 1024
GRANT_EXTENTS_MAX: Final = 4096
"""More extents than this are merged by the planner into covering ones."""
NONCE_BYTES: Final = 16
KEY_BYTES: Final = 32
LANES_MAX: Final = 64
"""Lanes of one logical unit, numbered from 1: as many as a node may have drives."""


class Rights(IntFlag):
    """What may be done."""

    READ = 1
    WRITE = 2
    APPEND = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The decoded body of a grant.

    `extents` bounds a block device, as (first LBA, blocks) pairs; empty for tape.
    `position` is the object number from which APPEND starts (tape), otherwise 0.
    `bytes_max` bounds what may be moved through one grant, retries of a damaged frame included.
    `lane` is 0 for a writer of the whole unit; 1 to `LANES_MAX` for one of several that write disjoint extents of a
    block device at once, each with a fence floor of its own.
    """

    node: NodeName
    designator: Designator
    rights: Rights
    extents: tuple[tuple[int, int], ...]
    position: int
    job: JobId
    item: ItemId
    epoch: Epoch
    holder: bytes
    ttl_s: float
    bytes_max: int
    lane: int = 0


def encode_grant(grant: Grant) -> bytes:
    """Return the body."""
    assert len(grant.extents) <= GRANT_EXTENTS_MAX
    return pack(
        [
            GRANT_VERSION,
            grant.node,
            grant.designator,
            int(grant.rights),
            [[lba, blocks] for lba, blocks in grant.extents],
            grant.position,
            grant.job,
            grant.item,
            grant.epoch,
            grant.holder,
            grant.ttl_s,
            grant.bytes_max,
            grant.lane,
        ]
    )


def decode_grant(body: bytes) -> Grant:
    """Decode a body.  Any malformed input is `NotAuthorizedError`: one error for every refusal."""
    if len(body) > GRANT_BYTES_MAX:
        raise NotAuthorizedError("grant refused")
    try:
        fields = unpack(body)
        (
            version,
            node,
            designator,
            rights,
            extents,
            position,
            job,
            item,
            epoch,
            holder,
            ttl_s,
            most,
            lane,
        ) = fields
        _expect(type(node) is str and type(designator) is bytes and len(designator) == 8)
        _expect(
            all(
                type(n) is int and n >= 0
                for n in (version, rights, position, job, item, epoch, most, lane)
            )
        )
        _expect(version == GRANT_VERSION and type(ttl_s) is float and ttl_s > 0)
        _expect(type(holder) is bytes and len(holder) == KEY_BYTES and rights <= 7)
        _expect(len(extents) <= GRANT_EXTENTS_MAX and lane <= LANES_MAX)
        pairs = tuple((lba, blocks) for lba, blocks in extents)
        _expect(all(type(n) is int and n >= 0 for pair in pairs for n in pair))
    except (PackingError, TypeError, ValueError) as error:
        raise NotAuthorizedError("grant refused") from error
    return Grant(
        node=node,
        designator=Designator(designator),
        rights=Rights(rights),
        extents=pairs,
        position=position,
        job=job,
        item=item,
        epoch=epoch,
        holder=holder,
        ttl_s=ttl_s,
        bytes_max=most,
        lane=lane,
    )


def _expect(holds: bool) -> None:
    if not holds:
        raise ValueError("field out of range")


def agree(secret_key: bytes, public_key: bytes) -> bytes:
    """Return the X25519 shared secret of two CURVE key pairs (raw 32-byte keys)."""
    try:
        return X25519PrivateKey.from_private_bytes(secret_key).exchange(
            X25519PublicKey.from_public_bytes(public_key)
        )
    except ValueError as error:  # an all-zero result: a low-order point instead of a key
        raise NotAuthorizedError("grant refused") from error


def _derive(secret: bytes, *, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)


def grant_key(shared: bytes) -> bytes:
    """Return K from the X25519 secret of controller and node."""
    return _derive(shared, salt=b"serverless-backup", info=b"grant key 1")


def grant_tag(body: bytes, *, key: bytes) -> bytes:
    """Return the tag of a body under K."""
    return hmac.digest(key, body, "sha256")


def session_key(
    *, tag: bytes, holder_secret: bytes, node_nonce: bytes, mover_nonce: bytes, boot_id: bytes
) -> bytes:
    """Return the key that authenticates every frame of one connection."""
    salt = hashlib.sha256(node_nonce + mover_nonce + boot_id).digest()
    return _derive(tag + holder_secret, salt=salt, info=b"session key 1")


def open_proof(key: bytes, body: bytes) -> bytes:
    """Return the proof, sent with OPEN, that the sender knows the session key."""
    return hmac.digest(key, b"open" + body, "sha256")


def proof_matches(given: bytes, expected: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given, expected)
