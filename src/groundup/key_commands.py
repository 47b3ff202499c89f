"""`groundup keys`: who may use a server. A running one notices within a second."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from groundup.serving.keys import Key, KeyLimits

app = typer.Typer(help="Create, list, limit, rotate and revoke the keys of a server.", no_args_is_help=True)

Place = Annotated[
    Path | None,
    typer.Option("--file", help="The file of keys; GROUNDUP_KEYS, or .groundup/keys.json.", show_default=False),
]
Id = Annotated[str, typer.Argument(help="The key's id, as `groundup keys list` shows it.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Rate = Annotated[str | None, typer.Option("--requests-per-minute", help="At most so many requests a minute.")]
TokenRate = Annotated[str | None, typer.Option("--tokens-per-minute", help="At most so many tokens a minute: 20k.")]
Concurrent = Annotated[str | None, typer.Option("--concurrent", help="At most so many requests at once.")]
Daily = Annotated[str | None, typer.Option("--tokens-per-day", help="At most so many tokens a day (UTC): 1M.")]
Monthly = Annotated[str | None, typer.Option("--tokens-per-month", help="At most so many tokens a month (UTC): 20M.")]


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Whose it is.", show_default=False)],
    scope: Annotated[list[str] | None, typer.Option(help="infer, admin or metrics; may be repeated.")] = None,
    expires: Annotated[str | None, typer.Option(help="After so long: 12h, 90d.")] = None,
    requests_per_minute: Rate = None,
    tokens_per_minute: TokenRate = None,
    concurrent: Concurrent = None,
    tokens_per_day: Daily = None,
    tokens_per_month: Monthly = None,
    file: Place = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it; it is not kept and cannot be shown again."""
    from groundup.serving import keys

    rates = (requests_per_minute, tokens_per_minute, concurrent, tokens_per_day, tokens_per_month)
    limits = _limits(keys.KeyLimits(), rates)
    ends = _seconds(expires, "--expires") if expires is not None else None
    scopes = tuple(scope) if scope else ("infer",)
    key_id, text = keys.create(_place(file), name, scopes=scopes, expires_in_s=ends, limits=limits)
    _hand_over(key_id, text, as_json=as_json)


@app.command("list")
def list_(file: Place = None, as_json: Json = False) -> None:
    """List the keys: id, name, scopes, state and limits."""
    from groundup.serving import keys

    now, found = time.time(), keys.read(_place(file)).keys
    if as_json:
        print(json.dumps([_as_data(key_id, key, now) for key_id, key in found.items()], ensure_ascii=False, indent=1))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("id", "name", "scopes", "state", "created", "expires", "limits"):
        table.add_column(column, overflow="fold")
    for key_id, key in found.items():
        limits = ", ".join(f"{name}={value}" for name, value in key.limits if value is not None)
        cells = (key_id, key.name, ", ".join(key.scopes), key.state(now), _day(key.created), _day(key.expires), limits)
        table.add_row(*(escape(cell) for cell in cells))
    Console(highlight=False).print(table)


@app.command()
def revoke(key_id: Id, file: Place = None) -> None:
    """End a key at once."""
    from groundup.serving import keys

    keys.revoke(_place(file), key_id)
    print(f"revoked {key_id}; running servers refuse it within {keys.LOOK_EVERY_S:g} s")


@app.command()
def rotate(
    key_id: Id,
    overlap: Annotated[str, typer.Option(help="How long the old secret stays good: 0s, 1h, 7d.")] = "24h",
    file: Place = None,
    as_json: Json = False,
) -> None:
    """Give a key a new secret and print it; the old one stays good for a while."""
    from groundup.serving import keys

    text = keys.rotate(_place(file), key_id, overlap_s=_seconds(overlap, "--overlap"))
    _hand_over(key_id, text, as_json=as_json)


@app.command()
def limits(
    key_id: Id,
    requests_per_minute: Rate = None,
    tokens_per_minute: TokenRate = None,
    concurrent: Concurrent = None,
    tokens_per_day: Daily = None,
    tokens_per_month: Monthly = None,
    none: Annotated[list[str] | None, typer.Option(help="Lift a limit: tokens-per-day; may be repeated.")] = None,
    file: Place = None,
    usage: Annotated[Path | None, typer.Option(help="Where the server keeps the use of keys.")] = None,
    as_json: Json = False,
) -> None:
    """Show the limits of a key and what it has used, or change them."""
    from groundup.errors import UserError, nearest
    from groundup.serving import keys
    from groundup.serving.usage import read

    place = _place(file)
    key = keys.find(place, key_id)
    rates = (requests_per_minute, tokens_per_minute, concurrent, tokens_per_day, tokens_per_month)
    lifted = [name.replace("-", "_") for name in none or ()]
    for name in lifted:
        if name not in keys.KeyLimits.model_fields:
            raise UserError(f"no limit named {name!r}", where="--none", fix=nearest(name, keys.KeyLimits.model_fields))
    wanted = _limits(key.limits, rates).model_copy(update=dict.fromkeys(lifted))
    if wanted != key.limits:
        keys.set_limits(place, key_id, wanted)
    today, month = read(usage or place.with_name("usage.sqlite"), time.time()).get(key_id, (0, 0))
    found = {"id": key_id, "limits": wanted.model_dump(), "used_today": today, "used_this_month": month}
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for name, value in wanted:
        print(f"{name:<20}  {'as the server is set' if value is None else value}")
    print(f"{'used today':<20}  {today}\n{'used this month':<20}  {month}")


def _place(file: Path | None) -> Path:
    from groundup.serving.keys import default_path

    return file or default_path()


def _limits(old: KeyLimits, rates: tuple[str | None, ...]) -> KeyLimits:
    """The limits with those changed that are given, in the order of their fields."""
    from groundup.errors import UserError
    from groundup.units import parse_count

    changed = {}
    for name, value in zip(type(old).model_fields, rates, strict=True):
        if value is None:
            continue
        where = f"--{name.replace('_', '-')}"
        try:
            changed[name] = parse_count(value)
        except ValueError as error:
            raise UserError(str(error), where=where) from error
        if not changed[name]:
            raise UserError("0 would allow nothing", where=where, fix="groundup keys revoke ID ends a key")
    return old.model_copy(update=changed)


def _seconds(text: str, where: str) -> float:
    from groundup.errors import UserError
    from groundup.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UserError(str(error), where=where) from error


def _hand_over(key_id: str, text: str, *, as_json: bool) -> None:
    """Print a key where a script can take it, and what to know about it where a person reads."""
    if as_json:
        print(json.dumps({"id": key_id, "key": text}))
        return
    print(text)
    typer.echo(f"id {key_id}; keep the key now, it is not stored and cannot be shown again", err=True)


def _as_data(key_id: str, key: Key, now: float) -> dict[str, Any]:
    """A key as plain data, without its secrets' digests."""
    kept = key.model_dump(mode="json", exclude={"secrets"})
    return {"id": key_id, "state": key.state(now)} | kept


def _day(seconds: float | None) -> str:
    return "never" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
