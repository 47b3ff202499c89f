"""API keys: who may use a server, for what, how much, and until when.

A key reads `gu_ID_SECRET`. The id (8 characters of base62) names its owner in lists and logs. The secret is
32 random bytes in base62; the file holds its SHA-256 alone. That is enough, and more would be worse: a slow
hash (scrypt) or a pepper makes *guessable* secrets costly to guess, but nobody guesses 256 random bits, while
a slow hash would let anyone without a key burn the server's processor, 50 ms for each wrong one.

The file is JSON, replaced whole by a rename and written under a lock, with mode 0600. So any number of
commands and servers use it together, an administrator can read it, and a cluster can mount it read-only as a
secret. A server looks at its time and size at most once a second, and keeps the last good keys if it breaks.

Rotation gives the same id a second secret; the old one stays good for an overlap, so that the owner's limits,
quota and log lines carry on.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import string
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from groundup.artifact import lock, write_whole
from groundup.config import Section
from groundup.errors import UserError, nearest
from groundup.units import PositiveCount

FORMAT: Literal[1] = 1
SCOPES = {
    "infer": "use the models",
    "admin": "load and unload models and adapters, drain the server",
    "metrics": "read /metrics, and nothing else",
}
"""What a key may do. None includes another: the key of a program that infers should not administer."""
ID_LENGTH, SECRET_LENGTH = 8, 43
"""Characters of base62. 43 of them hold 256 bits, 8 hold 47."""
LOOK_EVERY_S = 1.0
LOCK_WAIT_S = 5.0
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_KEY = re.compile(rf"gu_([0-9A-Za-z]{{{ID_LENGTH}}})_([0-9A-Za-z]{{{SECRET_LENGTH}}})", re.ASCII)
_NOBODY = hashlib.sha256(b"nobody's secret").hexdigest()


class KeyLimits(Section):
    """How much one key may use. What is not given is as the server's settings say."""

    requests_per_minute: PositiveCount | None = None
    """Requests a minute; as many may come at once after a minute of silence."""
    tokens_per_minute: PositiveCount | None = None
    """Tokens a minute, of prompts and answers together."""
    concurrent: PositiveCount | None = None
    """Requests at the same time."""
    tokens_per_day: PositiveCount | None = None
    """Tokens a day (UTC)."""
    tokens_per_month: PositiveCount | None = None
    """Tokens a calendar month (UTC)."""

    def over(self, defaults: KeyLimits) -> KeyLimits:
        """These limits, and the defaults where this key has none of its own."""
        return KeyLimits(**(dict(defaults) | {name: value for name, value in self if value is not None}))


class Secret(Section):
    """One secret of a key, as it is kept: its digest and its times."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the secret's 43 characters, in hex."""
    created: float
    """Seconds since 1970."""
    expires: float | None = None
    """Seconds since 1970; set when it was rotated out."""


class Key(Section):
    """A key as it is kept."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]
    """For people: whose it is."""
    scopes: Annotated[tuple[Literal["infer", "admin", "metrics"], ...], Field(min_length=1)] = ("infer",)
    created: float
    """Seconds since 1970."""
    expires: float | None = None
    """Seconds since 1970; None is never."""
    revoked: float | None = None
    """When it was revoked, in seconds since 1970."""
    limits: KeyLimits = KeyLimits()
    secrets: Annotated[tuple[Secret, ...], Field(min_length=1, max_length=8)]
    """Newest first."""

    def state(self, now: float) -> str:
        """`active`, `revoked` or `expired`."""
        if self.revoked is not None:
            return "revoked"
        return "active" if self.expires is None or now < self.expires else "expired"


class KeyFile(Section):
    """What the file holds."""

    format: Literal[1] = FORMAT
    keys: dict[Annotated[str, Field(pattern=r"^[0-9A-Za-z]{8}$")], Key] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sent a request, in `scope["groundup.key"]` of every request that passed."""

    id: str
    name: str
    scopes: frozenset[str]
    limits: KeyLimits


ANYBODY = Principal("anonymous", "anonymous", frozenset(SCOPES), KeyLimits())
"""Everyone, on a server that was told in so many words to ask for no key."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a key that was presented: a principal, or the reason it is not let in."""

    principal: Principal | None = None
    digest: str = ""
    """SHA-256 of the secret, by which a session stays bound to it."""
    problem: Literal["", "unknown", "revoked", "expired"] = ""


def default_path() -> Path:
    """Where keys are kept: `GROUNDUP_KEYS`, or `.groundup/keys.json` beside the store."""
    return Path(os.environ.get("GROUNDUP_KEYS", ".groundup/keys.json"))


class KeyRing:
    """The keys of a running server, kept in memory and looked up without touching the disk.

    Raises UserError if the file is missing, broken, or open for others to write. `complain` is told when a
    later version of the file cannot be read; the keys read before stay in force.
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.time, complain: Callable[[str], None] | None = None
    ) -> None:
        self.path, self._clock, self._complain = path, clock, complain or (lambda text: None)
        self._seen = _fingerprint(path)
        self._keys: Mapping[str, Key] = read(path).keys
        self._looked = clock()

    def check(self, presented: str) -> Verdict:
        """Whether a text is a key that is good now. Takes the same time for an unknown id as for a known one."""
        match = _KEY.fullmatch(presented)
        if match is None:
            return Verdict(problem="unknown")
        self.refresh()
        key, digest = self._keys.get(match[1]), _digest(match[2])
        found = None
        for secret in key.secrets if key is not None else [Secret(sha256=_NOBODY, created=0.0)]:
            if hmac.compare_digest(secret.sha256, digest):
                found = secret
        return self._judge(match[1], key, found if key is not None else None)

    def renew(self, key_id: str, digest: str) -> Verdict:
        """The same for a session, which knows the id and the digest of the secret it was opened with."""
        self.refresh()
        key = self._keys.get(key_id)
        held = [secret for secret in key.secrets if hmac.compare_digest(secret.sha256, digest)] if key else []
        return self._judge(key_id, key, held[0] if held else None)

    def principal(self, key_id: str) -> Principal | None:
        """Whose key an id names, for work done on its behalf later; None if it is no longer good."""
        self.refresh()
        key = self._keys.get(key_id)
        return self._judge(key_id, key, key.secrets[0]).principal if key is not None else None

    def _judge(self, key_id: str, key: Key | None, secret: Secret | None) -> Verdict:
        if key is None or secret is None:
            return Verdict(problem="unknown")
        now = self._clock()
        if key.revoked is not None:
            return Verdict(problem="revoked")
        if any(end is not None and now >= end for end in (key.expires, secret.expires)):
            return Verdict(problem="expired")
        return Verdict(Principal(key_id, key.name, frozenset(key.scopes), key.limits), secret.sha256)

    def refresh(self) -> None:
        """Read the file again if it has changed; looked at once a second at most."""
        now = self._clock()
        if 0 <= now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        seen = _fingerprint(self.path)
        if seen == self._seen:
            return
        self._seen = seen  # also of a broken file: it is complained of once, not once a second
        try:
            self._keys = read(self.path).keys
        except UserError as error:
            self._complain(f"the keys read before stay in force: {error}")


def read(path: Path) -> KeyFile:
    """The keys in a file. Raises UserError if there is none, if it is broken, or if others may write it."""
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
        found = KeyFile.model_validate(json.loads(text))
    except FileNotFoundError as error:
        raise UserError("there is no file of keys", where=str(path), fix="groundup keys create --name NAME") from error
    except OSError as error:
        raise UserError(f"the keys cannot be read ({error.strerror})", where=str(path)) from error
    except (ValueError, RecursionError) as error:  # pydantic's errors are ValueErrors
        what = f"the file of keys is broken ({str(error).splitlines()[0]})"
        raise UserError(what, where=str(path), fix="restore it, or move it away and create new keys") from error
    if os.name != "nt" and mode & 0o022:
        what = f"others may write the file of keys (mode {mode & 0o777:04o}), and so let themselves in"
        raise UserError(what, where=str(path), fix=f"chmod 600 {path}")
    return found


def find(path: Path, key_id: str) -> Key:
    """A key by its id. Raises UserError if there is none."""
    return _find(read(path).keys, key_id, path)


def create(
    path: Path,
    name: str,
    *,
    scopes: tuple[str, ...] = ("infer",),
    expires_in_s: float | None = None,
    limits: KeyLimits | None = None,
) -> tuple[str, str]:
    """A new key, added to the file: its id, and the key itself, which is kept nowhere.

    Raises UserError for an unknown scope or a name that is empty, too long or holds control characters.
    """
    for scope in scopes:
        if scope not in SCOPES:
            raise UserError(f"no scope named {scope!r}", where="--scope", fix=nearest(scope, SCOPES))
    now = time.time()
    key_id, (text, secret) = _random(ID_LENGTH), _new_secret(now)
    values = {
        "name": name,
        "scopes": tuple(dict.fromkeys(scopes)),
        "created": now,
        "expires": None if expires_in_s is None else now + expires_in_s,
        "limits": limits or KeyLimits(),
        "secrets": (secret,),
    }
    try:
        key = Key.model_validate(values)
    except ValidationError as error:
        what = f"{name!r} cannot name a key"
        raise UserError(what, where="--name", fix="use 1 to 64 characters, none of them a control") from error
    with _editing(path) as keys:
        keys[key_id] = key
    return key_id, f"gu_{key_id}_{text}"


def first_key(path: Path) -> str | None:
    """The key of a server that is started for the first time, or None if there are keys already."""
    if path.exists():
        return None
    return create(path, "first", scopes=("infer", "admin", "metrics"))[1]


def revoke(path: Path, key_id: str) -> None:
    """End a key at once. It stays in the file, so that lists and logs still name it."""
    with _editing(path) as keys:
        key = _find(keys, key_id, path)
        if key.revoked is None:
            keys[key_id] = key.model_copy(update={"revoked": time.time()})


def rotate(path: Path, key_id: str, *, overlap_s: float) -> str:
    """A new secret for a key; those it had stay good for `overlap_s` seconds. Returns the whole new key.

    Raises UserError for a key that has been revoked or has expired.
    """
    now = time.time()
    text, secret = _new_secret(now)
    with _editing(path) as keys:
        key = _find(keys, key_id, path)
        if key.state(now) != "active":
            what = f"the key {key_id!r} is {key.state(now)}"
            raise UserError(what, where=str(path), fix="groundup keys create --name NAME makes a new one")
        end = now + overlap_s
        ending = [s.model_copy(update={"expires": min(end, s.expires or end)}) for s in key.secrets]
        kept = [s for s in ending if s.expires is not None and s.expires > now]
        keys[key_id] = key.model_copy(update={"secrets": (secret, *kept)[:8]})
    return f"gu_{key_id}_{text}"


def set_limits(path: Path, key_id: str, limits: KeyLimits) -> None:
    """Replace the limits of a key."""
    with _editing(path) as keys:
        keys[key_id] = _find(keys, key_id, path).model_copy(update={"limits": limits})


@contextmanager
def _editing(path: Path) -> Iterator[dict[str, Key]]:
    """The keys of a file to change, written back when the block ends without an error.

    Commands that come at the same time wait for one another, five seconds at most.
    """
    with _locked(path):
        keys = dict(read(path).keys) if path.exists() else {}
        yield keys
        text = json.dumps(KeyFile(keys=keys).model_dump(mode="json"), indent=1)
        try:
            write_whole(path, text + "\n", mode=0o600)
        except OSError as error:
            what = f"the keys cannot be written ({error.strerror})"
            raise UserError(what, where=str(path), fix="GROUNDUP_KEYS names another place") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    end = time.monotonic() + LOCK_WAIT_S
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(lock(path.with_name(f"{path.name}.lock"), what="another change of the keys"))
                break
            except UserError:
                if time.monotonic() >= end:
                    raise
            time.sleep(0.02)
        yield


def _find(keys: Mapping[str, Key], key_id: str, path: Path) -> Key:
    if key_id not in keys:
        raise UserError(f"no key has the id {key_id!r}", where=str(path), fix="groundup keys list shows all ids")
    return keys[key_id]


def _new_secret(now: float) -> tuple[str, Secret]:
    text = _random(SECRET_LENGTH)
    return text, Secret(sha256=_digest(text), created=now)


def _random(length: int) -> str:
    return "".join(secrets.choice(_BASE62) for _ in range(length))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
