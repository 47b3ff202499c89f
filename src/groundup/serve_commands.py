"""`groundup serve` and `groundup predict`: a model for everyone on the network, and for a file of rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

Options = list[str] | None


def serve(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="runs/RECIPE/STAGE of models or of a `serve` stage; model directories.", show_default=False
        ),
    ] = None,
    model: Annotated[Options, typer.Option(help="NAME=PATH: serve a model under this name; may be repeated.")] = None,
    adapter: Annotated[Options, typer.Option(help="NAME=PATH, or NAME@MODEL=PATH where several generate.")] = None,
    canary: Annotated[
        Options, typer.Option(help="NAME=PATH: try this model on a share of NAME's requests; see --set canary.….")
    ] = None,
    engine: Annotated[str, typer.Option(help="groundup, or vllm for one language model on GPUs.")] = "groundup",
    vllm: Annotated[Options, typer.Option(help="With --engine vllm: gpus=2, gpu_memory=80%, …")] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on; loopback unless given.")] = None,
    port: Annotated[int | None, typer.Option(help="8000 unless given; 0 takes any free one.")] = None,
    threads: Annotated[int | None, typer.Option(help="Compute threads of an engine.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Engine processes, each with all models.")] = None,
    context: Annotated[str | None, typer.Option(help="The longest text, prompt and answer together: 4Ki.")] = None,
    cache: Annotated[
        str | None, typer.Option(help="Memory for running and remembered texts of each model: 1GiB.")
    ] = None,
    max_sequences: Annotated[int | None, typer.Option(help="Texts generated at the same time at most.")] = None,
    max_queue: Annotated[int | None, typer.Option(help="Requests that may wait; more get 429.")] = None,
    max_queue_tokens: Annotated[str | None, typer.Option(help="Tokens that may wait together: 256Ki.")] = None,
    grace: Annotated[str | None, typer.Option(help="How long running work may go on at the end: 30s.")] = None,
    set_: Annotated[
        Options, typer.Option("--set", help="Any other setting: limits.max_rows=64, security.audit.path=audit.jsonl")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="The server's certificate (PEM, its chain after it).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key (PEM).")] = None,
    public_key: Annotated[Path | None, typer.Option(help="Open only models signed by this key's owner (PEM).")] = None,
    keys: Annotated[
        Path | None,
        typer.Option(help="The file of API keys; GROUNDUP_KEYS, or .groundup/keys.json.", show_default=False),
    ] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth-i-understand", help="Let everybody in, without keys.")] = False,
    state: Annotated[Path, typer.Option(help="Where files and batch jobs are kept.")] = Path(".groundup/serve"),
    metrics_prefix: Annotated[
        str | None, typer.Option(help="What names of metrics begin with: groundup, vllm.")
    ] = None,
    traces: Annotated[str, typer.Option(help="Send traces to this OTLP collector: http://HOST:4318/v1/traces.")] = "",
    log_format: Annotated[str, typer.Option(help="text or json.")] = "text",
    plan: Annotated[bool, typer.Option("--plan", help="Say whether it fits and how fast it will be, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address and the first key as JSON.")] = False,
) -> None:
    """Serve models: OpenAI's API and that of labelled tasks, with keys, limits and metrics."""
    from groundup.errors import UserError
    from groundup.serving import server
    from groundup.serving.keys import default_path, first_key
    from groundup.serving.service import named, service

    if log_format not in ("text", "json"):
        raise UserError(f"no log format {log_format!r}", where="--log-format", fix="text or json")
    given = {"host": host, "port": port, "threads": threads, "replicas": replicas, "context": context, "cache": cache}
    given |= {"max_sequences": max_sequences, "max_queue": max_queue, "max_queue_tokens": max_queue_tokens}
    given |= {"grace": grace, "metrics_prefix": metrics_prefix}
    changes = {name: value for name, value in given.items() if value is not None} | _settings(set_ or [])
    wanted = service(paths or [], models=model or [], adapters=adapter or [], changes=changes)
    file = None if no_auth else keys or default_path()
    trials = dict(named(text, "--canary") for text in canary or [])
    place = server.Place(state, file, public_key, tls_cert, tls_key, traces, log_format, trials)  # type: ignore[arg-type]
    serve_with = _engine(engine, _settings(vllm or []), wanted, place)
    if plan:
        print("\n".join(server.plan(wanted, place)))
        return
    if engine == "groundup":
        server.examine(wanted, place)  # before a key is made for a server that cannot start
    key = first_key(file) if file is not None else None

    def ready(address: str) -> None:
        if as_json:
            print(json.dumps({"url": address, "models": list(wanted.models), "key": key}), flush=True)
            return
        names = ", ".join([*wanted.models, *wanted.adapters])
        print(f"serving {names} at {address}/v1 (its routes: {address}/docs)", flush=True)
        if key is not None:
            print(f"the first API key, shown only now: {key}", flush=True)
        if file is None:
            print("without keys: whoever reaches the address may do everything", file=sys.stderr, flush=True)

    serve_with(ready=ready)


def _engine(name: str, options: dict[str, Any], wanted: Any, place: Any) -> Any:
    """What serves with an engine of this name. Raises UserError, for one that there is not too."""
    from functools import partial

    from groundup.errors import UserError, nearest

    if name == "groundup" and not options:
        from groundup.serving import server

        return partial(server.serve, wanted, place)
    if name != "vllm":
        what = f"there is no engine {name!r}" if name != "groundup" else "options of vLLM without vLLM"
        raise UserError(
            what, where="--engine", fix=nearest(name, ("groundup", "vllm")) if not options else "--engine vllm"
        )
    if place.candidates:
        raise UserError("vLLM serves no candidate beside its model", where="--canary", fix="leave --engine out")
    from groundup.deploy import vllm_serve

    return partial(vllm_serve.serve, wanted, place, vllm_serve.options(options, wanted))


def predict(
    model: Annotated[Path, typer.Argument(help="runs/RECIPE/STAGE, or any model directory.")],
    source: Annotated[Path, typer.Option("--in", help="JSON lines, one row each.", show_default=False)],
    target: Annotated[Path, typer.Option("--out", help="Where the answers go, one a line.", show_default=False)],
    set_: Annotated[
        Options, typer.Option("--set", help="For texts: temperature=0, max_tokens=64, … unless the row says otherwise.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="An adapter of the model.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin again, whatever stands there.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON, events on standard error.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")] = False,
) -> None:
    """Answer every row of a file. Run it again to continue where it was interrupted."""
    from groundup.console import reporter_for
    from groundup.serving.offline import predict as predict_rows

    reporter = reporter_for(as_json, quiet)
    try:
        done = predict_rows(
            model, source, target, given=_settings(set_ or []), adapter=adapter, fresh=fresh, reporter=reporter
        )
    finally:
        reporter.close()
    if as_json:
        print(json.dumps(done))
    elif not quiet:
        failed = f", {done['failed']} of them failed" if done["failed"] else ""
        print(f"{done['rows']} rows answered in {target}{failed}")


def _settings(given: list[str]) -> dict[str, Any]:
    """`a.b=1` as `{"a": {"b": 1}}`. Raises UserError."""
    from groundup.errors import UserError
    from groundup.yaml import Yaml

    found: dict[str, Any] = {}
    for text in given:
        path, sign, value = text.partition("=")
        if not sign or not path:
            raise UserError(f"{text!r} sets nothing", where="--set", fix="--set KEY=VALUE")
        place = found
        *parents, last = path.split(".")
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = Yaml.parse(f"value: {value}", Path("--set")).data["value"]
    return found
