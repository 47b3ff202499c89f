"""Signatures of artefacts: whoever holds the public key can tell that nothing was changed since it was signed.

`signature.json` lies beside the manifest. It is a DSSE envelope (secure-systems-lab/dsse) around an in-toto
statement v1, both published and read by other tools: the statement lists the manifest and every file of the
payload with its SHA-256, and an Ed25519 key signs it (RFC 8032). Keys are PEM as OpenSSL writes them, so
`openssl genpkey -algorithm ed25519` makes one too.

A signature says who vouches for these bytes. It says nothing about newer ones: an old artefact stays validly
signed, so deploy by digest where that matters.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.artifact import MANIFEST, SIGNATURE, Artifact, digest_file, write_whole
from groundup.errors import ArtifactError, MissingExtra, UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:groundup:artefact:v1"
MAX_SIGNATURES = 32


@dataclass(frozen=True)
class Signed:
    """A signature that was found good."""

    key_id: str
    signed_at: str
    """When, by the clock of whoever signed; ISO 8601."""
    files: int
    """How many files it covers, the manifest included."""


def new_keys(private: Path) -> Path:
    """Write a new private key, readable by its owner alone, and its public key beside it; returns the latter's path.

    Raises UserError if either is there already.
    """
    ed25519, serialization = _library()
    public = private.with_name(f"{private.stem}.pub.pem")
    for path in (private, public):
        if path.exists():
            raise UserError(
                "there is a key already", where=str(path), fix="give another name: keys are not overwritten"
            )
    key = ed25519.Ed25519PrivateKey.generate()
    private.parent.mkdir(parents=True, exist_ok=True)
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    write_whole(private, key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain), mode=0o600)
    write_whole(public, key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo))
    return public


def sign(artifact: Artifact, private: Path) -> str:
    """Sign an artefact after reading every byte of it; returns the id of the key.

    A signature by the same key is replaced, those by others are kept, if they sign the same bytes.
    Raises ArtifactError if the artefact is damaged, UserError for a key that cannot be used.
    """
    key = _private_key(private)
    artifact.verify(full=True)
    key_id = key_id_of(key.public_key())
    envelope = _read(artifact.path / SIGNATURE) if (artifact.path / SIGNATURE).is_file() else None
    payload = _statement(artifact)
    others = []
    if envelope is not None and _subjects(_decoded(envelope["payload"])) == _subjects(payload):
        payload = _decoded(envelope["payload"])
        others = [each for each in envelope["signatures"] if each["keyid"] != key_id]
    signature = {"keyid": key_id, "sig": base64.b64encode(key.sign(_framed(payload))).decode()}
    signed = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [*others, signature][-MAX_SIGNATURES:],
    }
    write_whole(artifact.path / SIGNATURE, json.dumps(signed, indent=1) + "\n")
    return key_id


def require_signed(artifact: Artifact, public: Path) -> Signed:
    """Raise ArtifactError unless an artefact is as it was when the owner of a public key signed it.

    The signature is checked before anything it covers is believed; then every byte is read.
    """
    key = _public_key(public)
    place, wanted = artifact.path / SIGNATURE, key_id_of(key)
    if not place.is_file():
        fix = f"groundup sign {artifact.path} --key PRIVATE, by whoever vouches for it"
        raise ArtifactError(f"the {artifact.kind} is not signed", where=str(artifact.path), fix=fix)
    envelope = _read(place)
    payload = _decoded(envelope["payload"])
    if not any(_is_good(key, each["sig"], payload) for each in envelope["signatures"]):
        signers = ", ".join(sorted({each["keyid"][:16] for each in envelope["signatures"]})) or "nobody"
        what = f"no signature by the key {wanted[:16]} is good (signed by {signers})"
        raise ArtifactError(what, where=str(place), fix="get the artefact again, or give its signer's public key")
    covered = _subjects(payload)
    if covered != _contents(artifact):
        what = "the signature is of other files than the manifest lists"
        raise ArtifactError(what, where=str(place), fix="get the artefact again from whoever signed it")
    artifact.verify(full=True)
    predicate = json.loads(payload).get("predicate", {})
    return Signed(wanted, str(predicate.get("signed_at", "")), len(covered))


def key_id_of(key: Ed25519PublicKey) -> str:
    """SHA-256 in hex of a public key as DER."""
    _, serialization = _library()
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _statement(artifact: Artifact) -> bytes:
    subjects = [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(_contents(artifact).items())]
    predicate = {
        "kind": artifact.kind,
        "digest": artifact.digest,
        "signed_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }
    return json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _contents(artifact: Artifact) -> dict[str, str]:
    """Every file of an artefact with its SHA-256: the manifest as it lies there, the others as it lists them."""
    listed = {name: str(entry["sha256"]) for name, entry in artifact.manifest["files"].items()}
    return listed | {MANIFEST: digest_file(artifact.path / MANIFEST)}


def _subjects(payload: bytes) -> dict[str, str]:
    """The files that a statement is about. Raises ArtifactError if it is no statement of ours."""
    try:
        statement = json.loads(payload)
        if (statement["_type"], statement["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError("it is about something else")
        return {str(subject["name"]): str(subject["digest"]["sha256"]) for subject in statement["subject"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"the signature's statement cannot be read ({error})", where=SIGNATURE) from error


def _read(path: Path) -> dict[str, Any]:
    """An envelope with its parts of the right types. Raises ArtifactError."""
    try:
        envelope = json.loads(path.read_text(encoding="utf-8"))
        signatures = [{"keyid": str(each.get("keyid", "")), "sig": each["sig"]} for each in envelope["signatures"]]
        is_ours = envelope["payloadType"] == PAYLOAD_TYPE and isinstance(envelope["payload"], str)
        if not is_ours or len(signatures) > MAX_SIGNATURES or not all(isinstance(s["sig"], str) for s in signatures):
            raise ValueError("it is of another format")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"the signature cannot be read ({error})", where=str(path)) from error
    return {"payload": envelope["payload"], "signatures": signatures}


def _framed(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding, so that no statement can pass for one of another type."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _is_good(key: Ed25519PublicKey, signature: str, payload: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(base64.b64decode(signature, validate=True), _framed(payload))
    except (InvalidSignature, binascii.Error):
        return False
    return True


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ArtifactError("the signature's statement is not base64", where=SIGNATURE) from error


def _private_key(path: Path) -> Ed25519PrivateKey:
    ed25519, serialization = _library()
    data = _key_file(path)
    if os.name != "nt" and path.stat().st_mode & 0o077:
        raise UserError("others may read the private key", where=str(path), fix=f"chmod 600 {path}")
    try:
        key: Ed25519PrivateKey = serialization.load_pem_private_key(data, password=None)
    except TypeError as error:
        fix = f"openssl pkey -in {path} writes it without a password"
        raise UserError("the private key is encrypted", where=str(path), fix=fix) from error
    except Exception as error:  # cryptography raises errors of several kinds for what is no key
        raise UserError("this is no private key", where=str(path), fix=_MAKE) from error
    is_ours = isinstance(key, ed25519.Ed25519PrivateKey)
    if not is_ours:
        raise UserError("this is no Ed25519 key", where=str(path), fix=_MAKE)
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    ed25519, serialization = _library()
    data = _key_file(path)
    try:
        key: Ed25519PublicKey = serialization.load_pem_public_key(data)
    except Exception as error:  # as above
        raise UserError("this is no public key", where=str(path), fix="give the .pub.pem file of the signer") from error
    is_ours = isinstance(key, ed25519.Ed25519PublicKey)
    if not is_ours:
        raise UserError("this is no Ed25519 key", where=str(path), fix="give the .pub.pem file of the signer")
    return key


_MAKE = "groundup sign --new-key NAME.pem makes a pair"


def _key_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"the key cannot be read ({error.strerror})", where=str(path), fix=_MAKE) from error


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtra("cryptography", "trust", needed_for="signing") from error
    return ed25519, serialization
