"""TLS files that would fail a client fail the start instead, and say how."""

from __future__ import annotations

import datetime
import os
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from groundup.errors import UserError
from groundup.serving import tls

x509 = pytest.importorskip("cryptography.x509", reason="makes the certificates: pip install 'groundup[trust]'")
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
POSIX = pytest.mark.skipif(os.name == "nt", reason="files have no modes here")


def write_certificate(
    name: str = "a", *, begins: Any = NOW - DAY, ends: Any = NOW + 90 * DAY, password: bytes | None = None
) -> tuple[Path, Path]:
    """A self-signed certificate for localhost and its key."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), begins, ends)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    places = Path(f"{name}.crt"), Path(f"{name}.key")
    places[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    places[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, hidden))
    places[1].chmod(0o600)
    return places


def test_a_good_pair_is_loaded_and_its_end_is_known() -> None:
    found = tls.load(*write_certificate())
    assert found.names == ("localhost",)
    assert found.ends == pytest.approx((NOW + 90 * DAY).timestamp(), abs=2)
    assert found.warning(time.time()) is None
    assert "ends in 5 days" in str(found.warning(found.ends - 5 * 86400))
    assert found.context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("times", "expected"),
    [({"begins": NOW - 9 * DAY, "ends": NOW - DAY}, "has expired"), ({"begins": NOW + DAY}, "is not valid yet")],
)
def test_a_certificate_out_of_its_time_is_refused(times: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        tls.load(*write_certificate(**times))


def test_a_key_of_another_certificate_is_refused() -> None:
    certificate, _ = write_certificate("a")
    _, key = write_certificate("b")
    with pytest.raises(UserError, match="does not belong"):
        tls.load(certificate, key)


def test_an_encrypted_key_is_refused_without_asking_for_its_password() -> None:
    with pytest.raises(UserError, match="encrypted"):
        tls.load(*write_certificate(password=b"secret"))


@POSIX
@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o666])
def test_a_key_that_others_may_read_is_refused_until_the_rule_is_off(
    mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = write_certificate()
    key.chmod(mode)
    with pytest.raises(UserError, match="others may read or change"):
        tls.load(certificate, key)
    monkeypatch.setattr(tls, "require_private", lambda key: None)
    tls.load(certificate, key)


@POSIX
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_key_of_owner_and_group_is_taken(mode: int) -> None:
    certificate, key = write_certificate()
    key.chmod(mode)
    tls.load(certificate, key)


def test_files_that_are_something_else_are_refused() -> None:
    certificate, key = write_certificate()
    der = Path("a.der")
    der.write_bytes(ssl.PEM_cert_to_DER_cert(certificate.read_text()))
    der.chmod(0o600)
    cut = Path("cut.key")
    cut.write_text(key.read_text()[:60])
    cut.chmod(0o600)
    for pair, expected in (
        ((Path("none.crt"), key), "cannot be read"),
        ((Path(), key), "cannot be read"),
        ((der, key), "not PEM"),
        ((certificate, cut), "cannot be used"),
        ((key, key), "cannot be used"),
    ):
        with pytest.raises(UserError, match=expected):
            tls.load(*pair)
