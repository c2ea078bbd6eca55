"""Key pairs in files, and the table of who may connect.

A key pair is Curve25519: the same 32 bytes serve CURVE (control plane) and the key agreement of grants.  Files are
TOML with hexadecimal keys:

    FOLDER/NAME.secret              role, name, public, secret; mode 0600, never overwritten
    FOLDER/authorized/NAME.public   role, name, public; its presence admits the key, its removal revokes it

Both appear under their final name only when complete and durable.  The table fails closed: a file that is damaged,
misnamed or claims a key that another file claims too admits nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import stat
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from backplane.errors import ConfigError, NotFoundError, RefusedError, UsageError
from backplane.runtime.clock import Clock, SystemClock
from backplane.wire.session import Authorized

__all__ = [
    "Authorized",
    "KeyPair",
    "KeyTable",
    "PublicKey",
    "create_key_pair",
    "ensure_key_pair",
    "load_key_pair",
    "load_public_key",
]

ROLES: Final = ("controller", "mover", "storage", "operator")
KEY_BYTES: Final = 32
KEY_FILE_BYTES_MAX: Final = 4096
AUTHORIZED_FOLDER: Final = "authorized"
KEYS_MAX: Final = 4096
"""Most files the table reads; more are a mistake (or somebody filling the folder)."""

RESCAN_S: Final = 1.0
"""How soon an edit inside a file is noticed; a new or removed file is noticed at once."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """What one process shows to the others."""

    public: bytes
    role: str
    name: str


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The identity of one process.  The secret is never printed."""

    public: bytes
    secret: bytes = field(repr=False)
    role: str
    name: str


def create_key_pair(folder: Path, *, role: str, name: str) -> KeyPair:
    """Make a new identity: write `authorized/NAME.public` and `NAME.secret`, durably.

    Raises `RefusedError` if the secret exists already: a key is never overwritten.
    """
    _check_identity(role, name)
    private = X25519PrivateKey.generate()
    pair = KeyPair(private.public_key().public_bytes_raw(), private.private_bytes_raw(), role, name)
    secret, authorized = folder / f"{name}.secret", folder / AUTHORIZED_FOLDER
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        authorized.mkdir(mode=0o755, exist_ok=True)
        with _locked(folder):
            if secret.exists():
                raise _taken(secret)
            # The public file first: a crash in between leaves a key that nobody holds.  The other way round would leave
            # a secret without its public file, which looks like a key that was revoked.
            _write(authorized / f"{name}.public", _text(pair), mode=0o644, may_replace=True)
            text = _text(pair) + f'secret = "{pair.secret.hex()}"\n'
            _write(secret, text, mode=0o600, may_replace=False)
    except OSError as error:
        raise RefusedError(f"cannot write keys to {folder}: {error.strerror}") from error
    return pair


def ensure_key_pair(folder: Path, *, role: str, name: str) -> KeyPair:
    """Load the identity of that name, or make it.  A key that was revoked stays revoked."""
    secret = folder / f"{name}.secret"
    if not secret.exists():
        try:
            return create_key_pair(folder, role=role, name=name)
        except RefusedError:
            if not secret.exists():  # else somebody was faster, and theirs is as good
                raise
    pair = load_key_pair(secret)
    if (pair.role, pair.name) != (role, name):
        raise RefusedError(f"{secret} belongs to {pair.role} {pair.name!r}, not {role} {name!r}")
    return pair


def load_key_pair(path: Path) -> KeyPair:
    """Read a secret file.  Refuses one that anybody but its owner may read."""
    with _opened(path) as descriptor:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & 0o077:
            raise RefusedError(
                f"{path} can be read by others (mode {mode:04o})",
                hint=f"chmod 600 {path}, and make a new key if it may have been seen",
            )
        data = os.read(descriptor, KEY_FILE_BYTES_MAX + 1)
    values = _parse(path, data, ("role", "name", "public", "secret"))
    pair = KeyPair(
        bytes.fromhex(values["public"]),
        bytes.fromhex(values["secret"]),
        values["role"],
        values["name"],
    )
    derived = X25519PrivateKey.from_private_bytes(pair.secret).public_key().public_bytes_raw()
    if derived != pair.public:
        raise ConfigError([f"{path}: the public key does not belong to the secret key"])
    return pair


def load_public_key(path: Path) -> PublicKey:
    """Read a public file, such as the controller's that every node needs."""
    with _opened(path) as descriptor:
        data = os.read(descriptor, KEY_FILE_BYTES_MAX + 1)
    values = _parse(path, data, ("role", "name", "public"))
    return PublicKey(bytes.fromhex(values["public"]), values["role"], values["name"])


class KeyTable:
    """Who may connect: the public files of a folder.  Thread-safe (the ZAP handler has a thread of its own).

    Follows the folder: cheap enough to be asked for every message, which is how a revoked key loses the connection
    that it already has.
    """

    def __init__(self, folder: Path, *, clock: Clock | None = None) -> None:
        self._folder = folder
        self._clock = clock if clock is not None else SystemClock()
        self._lock = threading.Lock()
        self._keys: dict[bytes, Authorized] = {}
        self._folder_time = -1
        self._signature: tuple[tuple[str, int, int, int], ...] | None = None
        self._scanned = 0.0

    def lookup(self, public: bytes) -> Authorized | None:
        """Return role and name of a key, or None: nobody we know."""
        with self._lock:
            self._follow()
            return self._keys.get(public)

    def is_authorized(self, public: bytes) -> bool:
        """Whether the key is in the table; what a `RouterEndpoint` asks."""
        return self.lookup(public) is not None

    def _follow(self) -> None:
        now = self._clock.monotonic()
        try:
            folder_time = self._folder.stat().st_mtime_ns
            is_due = now - self._scanned >= RESCAN_S or self._signature is None
            if folder_time == self._folder_time and not is_due:
                return
            signature = self._scan()
        except OSError as error:
            if self._signature != ():
                _logger.warning(
                    "key folder %s: %s; nobody is admitted", self._folder, error.strerror
                )
            self._keys, self._signature, self._folder_time = {}, (), -1
            return
        self._folder_time, self._scanned = folder_time, now
        if signature != self._signature:
            self._signature = signature
            self._keys = self._read([name for name, *_ in signature])

    def _scan(self) -> tuple[tuple[str, int, int, int], ...]:
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(".public"):
                    with contextlib.suppress(FileNotFoundError):  # removed while we look
                        status = entry.stat()
                        found.append(
                            (entry.name, status.st_ino, status.st_mtime_ns, status.st_size)
                        )
        return tuple(sorted(found))

    def _read(self, names: list[str]) -> dict[bytes, Authorized]:
        found: dict[bytes, Authorized] = {}
        claimed: dict[bytes, str] = {}
        for name in names[:KEYS_MAX]:
            path = self._folder / name
            try:
                key = load_public_key(path)
            except (ConfigError, NotFoundError, RefusedError) as error:
                _logger.warning("key file ignored: %s", error)
                continue
            if f"{key.name}.public" != name:
                _logger.warning("key file ignored: %s names %r inside", path, key.name)
                continue
            if key.public in claimed:
                _logger.warning("%s and %s claim one key: both ignored", path, claimed[key.public])
                found.pop(key.public, None)
                continue
            claimed[key.public] = name
            found[key.public] = Authorized(role=key.role, name=key.name)
        if len(names) > KEYS_MAX:
            _logger.warning("key folder %s: more than %d keys", self._folder, KEYS_MAX)
        return found


def _check_identity(role: str, name: str) -> None:
    if role not in ROLES:
        raise UsageError(f"no such role: {role!r}", hint=f"one of {', '.join(ROLES)}")
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"not a name for a key: {name!r}",
            hint="letters, digits, dot, dash, underscore; at most 64",
        )


def _text(key: KeyPair) -> str:
    # Roles and names were checked: neither needs quoting.
    return f'role = "{key.role}"\nname = "{key.name}"\npublic = "{key.public.hex()}"\n'


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One maker of keys per folder at a time: init containers start together."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _taken(secret: Path) -> RefusedError:
    return RefusedError(
        f"{secret} exists already", hint="a key is never overwritten; remove it to make a new one"
    )


def _write(path: Path, text: str, *, mode: int, may_replace: bool) -> None:
    """Write a file that is either absent or complete, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, mode)
    try:
        try:
            os.fchmod(descriptor, mode)  # whatever the umask is
            os.write(descriptor, text.encode("ascii"))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if may_replace:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)  # unlike rename, fails if the name is taken
    except FileExistsError as error:
        raise _taken(path) from error
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFoundError(f"no key file {path}", hint="ctl keys create makes keys") from error
    except OSError as error:
        raise RefusedError(f"cannot read the key file {path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RefusedError(f"{path} is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def _parse(path: Path, data: bytes, names: tuple[str, ...]) -> dict[str, str]:
    """Return the fields of a key file.  An error never shows a value: it could be the secret."""
    if len(data) > KEY_FILE_BYTES_MAX:
        raise ConfigError([f"{path}: larger than {KEY_FILE_BYTES_MAX} bytes"])
    try:
        values = tomllib.loads(data.decode("ascii"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        # `from None`: the parser's message may quote the line.
        raise ConfigError([f"{path}: not a key file ({type(error).__name__})"]) from None
    findings = [f"{path}: unknown key {key!r}" for key in values if key not in names]
    for name in names:
        value = values.get(name)
        if type(value) is not str:
            findings.append(f"{path}: {name}: missing, or not a string")
        elif name in ("public", "secret") and re.fullmatch("[0-9a-f]{64}", value) is None:
            findings.append(f"{path}: {name}: not {KEY_BYTES} bytes in hexadecimal")
        elif name == "role" and value not in ROLES:
            findings.append(f"{path}: role: not one of {', '.join(ROLES)}")
        elif name == "name" and _NAME.fullmatch(value) is None:
            findings.append(f"{path}: name: not a valid name")
    if findings:
        raise ConfigError(findings)
    return values
