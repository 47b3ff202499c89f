"""`groundup verify` and `groundup sign`: whether an artefact is what somebody wrote, and who says so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verify(
    path: Annotated[Path, typer.Argument(help="runs/RECIPE/STAGE, or any artefact.")],
    public_key: Annotated[
        Path | None, typer.Option("--public-key", help="Also require a good signature by this key's owner (PEM).")
    ] = None,
) -> None:
    """Read every byte of an artefact and compare it with its manifest, and with its signature."""
    from groundup.artifact import open_artifact

    artifact = open_artifact(path)
    if public_key is None:
        artifact.verify(full=True)
        signed = ""
    else:
        from groundup.signing import require_signed

        found = require_signed(artifact, public_key)
        signed = f", signed {found.signed_at} by {found.key_id[:16]}"
    count = len(artifact.manifest["files"])
    print(f"{artifact.kind} {artifact.digest}: all {count} files are as written{signed}")


def sign(
    path: Annotated[Path | None, typer.Argument(help="runs/RECIPE/STAGE, or any artefact.", show_default=False)] = None,
    key: Annotated[Path | None, typer.Option(help="Your private key, an Ed25519 key as PEM.")] = None,
    new_key: Annotated[
        Path | None, typer.Option("--new-key", help="Make a key here, NAME.pem and NAME.pub.pem.")
    ] = None,
) -> None:
    """Sign an artefact, so that others can tell it is as you left it: `groundup verify --public-key`."""
    from groundup import signing
    from groundup.artifact import open_artifact
    from groundup.errors import UserError

    if (path is None) == (new_key is None) or (path is not None) != (key is not None):
        fix = "groundup sign --new-key mine.pem, once; then groundup sign runs/RECIPE/STAGE --key mine.pem"
        raise UserError("give an artefact and a key, or --new-key alone", fix=fix)
    if new_key is not None:
        public = signing.new_keys(new_key)
        print(f"wrote {new_key}, which is yours alone, and {public}, which others need")
    if path is not None and key is not None:
        artifact = open_artifact(path)
        key_id = signing.sign(artifact, key)
        print(f"signed {artifact.kind} {artifact.digest} with the key {key_id[:16]}")
