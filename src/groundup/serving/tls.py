"""TLS from two files, tried before the server opens its port: a bad certificate is an error at the start.

The certificate and key are loaded and then used, in a handshake of this process with itself that never leaves
its memory. So what is checked is what clients will see: expired, not valid yet, a key of another certificate,
a broken chain.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup.errors import UserError

WARN_DAYS = 14
_EXPIRED, _NOT_YET = 10, 9
"""X509_V_ERR_CERT_HAS_EXPIRED and X509_V_ERR_CERT_NOT_YET_VALID of OpenSSL."""


@dataclass(frozen=True)
class Certificate:
    """A certificate that was tried and works."""

    context: ssl.SSLContext
    """To serve with: TLS 1.2 and later."""
    names: tuple[str, ...]
    """The hosts it is for."""
    ends: float
    """When it expires, in seconds since 1970."""

    def warning(self, now: float) -> str | None:
        """A sentence if it ends within two weeks."""
        days = (self.ends - now) / 86400
        return f"the TLS certificate ends in {days:.0f} days" if days < WARN_DAYS else None


def load(certificate: Path, key: Path) -> Certificate:
    """A certificate (PEM, with its chain after it) and its key (PEM, not encrypted), loaded and tried.

    Raises UserError for files that are missing, unreadable, open to others, of no use, or out of their time.
    """
    for path in (certificate, key):
        _require_readable(path)
    require_private(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    asked: list[bool] = []

    def no_password() -> str:
        asked.append(True)
        return ""

    try:
        context.load_cert_chain(certificate, key, password=no_password)
    except (ssl.SSLError, ValueError) as error:
        raise _unusable(certificate, key, error, is_encrypted=bool(asked)) from error
    names, ends = _tried(context, certificate)
    return Certificate(context, names, ends)


def require_private(key: Path) -> None:
    """Raise UserError if others than the owner and the group may read the key, or any but the owner change it."""
    if os.name == "nt":
        return
    mode = key.stat().st_mode & 0o777
    if mode & 0o027:
        what = f"others may read or change the TLS key (mode {mode:04o})"
        raise UserError(what, where=str(key), fix=f"chmod 600 {key}")


def _require_readable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(1 << 20)
    except OSError as error:
        what = f"the TLS file cannot be read ({error.strerror})"
        raise UserError(
            what, where=str(path), fix="give --tls-cert and --tls-key files that this user may read"
        ) from error
    if b"-----BEGIN " not in start:
        fix = f"openssl x509 -inform der -in {path} writes a certificate as PEM"
        raise UserError("the TLS file is not PEM", where=str(path), fix=fix)


def _unusable(certificate: Path, key: Path, error: Exception, *, is_encrypted: bool) -> UserError:
    reason = getattr(error, "reason", None) or str(error)
    if is_encrypted:
        fix = f"openssl pkey -in {key} writes it without a password; keep that file to yourself"
        return UserError("the TLS key is encrypted", where=str(key), fix=fix)
    if reason == "KEY_VALUES_MISMATCH":
        return UserError(
            f"the TLS key does not belong to {certificate}", where=str(key), fix="give the key it was made with"
        )
    what = f"the certificate and the key cannot be used ({reason})"
    return UserError(what, where=f"{certificate}, {key}", fix="--tls-cert wants a certificate, --tls-key a private key")


def _tried(context: ssl.SSLContext, certificate: Path) -> tuple[tuple[str, ...], float]:
    """The names of a certificate and when it ends, as a client that trusts it sees them."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is what is trusted here
    client.load_verify_locations(certificate)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = context.wrap_bio(there, back, server_side=True)
    theirs = client.wrap_bio(back, there)
    try:
        is_done = False
        while not is_done:
            is_done = _moved(theirs) & _moved(ours)
    except ssl.SSLCertVerificationError as error:
        found = {_EXPIRED: "has expired", _NOT_YET: "is not valid yet"}.get(error.verify_code)
        what = (
            f"the TLS certificate {found}"
            if found
            else f"the TLS certificate cannot be verified ({error.verify_message})"
        )
        fix = "check the clock of this machine" if error.verify_code == _NOT_YET else "renew it"
        raise UserError(what, where=str(certificate), fix=fix) from error
    except ssl.SSLError as error:
        what = f"a TLS handshake with this certificate fails ({error.reason})"
        raise UserError(what, where=str(certificate)) from error
    seen: dict[str, Any] = dict(theirs.getpeercert() or {})
    names = tuple(str(value) for kind, value in seen.get("subjectAltName", ()) if kind in ("DNS", "IP Address"))
    return names, float(ssl.cert_time_to_seconds(str(seen["notAfter"])))


def _moved(side: ssl.SSLObject) -> bool:
    """Take a handshake one step further; whether it is complete."""
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
