"""`groundup deploy`: the files that take a service elsewhere, written into a folder for a person to read and apply."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from groundup.deploy.service import Service
    from groundup.deploy.written import Files

Target = Literal["kubernetes", "docker", "ray", "prometheus", "grafana"]


def deploy(
    models: Annotated[
        list[str] | None, typer.Argument(help="runs/RECIPE/STAGE or NAME=PATH, one or more.", show_default=False)
    ] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="NAME=PATH or NAME@MODEL=PATH; repeat it.")] = None,
    to: Annotated[str, typer.Option(help="kubernetes, docker, ray, prometheus (alerts) or grafana (a board).")] = "",
    out: Annotated[Path | None, typer.Option(help="The folder to write into; deploy/TARGET unless given.")] = None,
    name: Annotated[str, typer.Option(help="What the service is called; its first model's name unless given.")] = "",
    engine: Annotated[str, typer.Option(help="groundup, or vllm for language models on GPUs.")] = "groundup",
    image: Annotated[str, typer.Option(help="kubernetes: the image, with a tag.")] = "",
    namespace: Annotated[str, typer.Option(help="kubernetes: where the service lives.")] = "default",
    replicas: Annotated[int, typer.Option(help="At least so many.")] = 2,
    max_replicas: Annotated[int, typer.Option(help="At most so many.")] = 8,
    claim: Annotated[str, typer.Option(help="kubernetes: a volume claim with the models, instead of the image.")] = "",
    keys: Annotated[str, typer.Option(help="ray: where each node has the file of keys.")] = ".groundup/keys.json",
    threads: Annotated[int | None, typer.Option(help="Compute threads of one replica; 2 unless given.")] = None,
    gpus: Annotated[int, typer.Option(help="vllm: GPUs of one replica.")] = 1,
    cache: Annotated[str | None, typer.Option(help="Memory for the cache of each model; 1GiB unless given.")] = None,
    port: Annotated[int | None, typer.Option(help="Where the server listens; 8000 unless given.")] = None,
    grace: Annotated[str | None, typer.Option(help="How long running requests may go on at the end: 30s.")] = None,
    metrics_prefix: Annotated[str | None, typer.Option(help="What the names of metrics begin with.")] = None,
    flag: Annotated[list[str] | None, typer.Option(help="A further flag of `groundup serve`; repeat it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there already.")] = False,
) -> None:
    """Write what takes a service to Kubernetes, Docker or Ray, and what watches it in Prometheus and Grafana."""
    from groundup.deploy.service import describe
    from groundup.deploy.written import Files
    from groundup.units import parse_bytes, parse_duration

    target = _target(to)
    files = Files(out or Path("deploy") / target, force=force)
    if target in ("prometheus", "grafana"):
        _watch(target, metrics_prefix or "groundup", files)
    else:
        service = describe(
            models or [],
            adapters=adapter or (),
            name=name,
            threads=threads,
            cache_bytes=_parsed(parse_bytes, cache, "--cache"),
            port=port,
            grace_s=_parsed(parse_duration, grace, "--grace"),
            prefix=metrics_prefix,
            engine=_engine(engine),
            gpus=gpus,
            flags=tuple(flag or ()),
        )
        sizes = {"replicas": replicas, "max_replicas": max_replicas}
        _write(target, service, files, image=image, namespace=namespace, claim=claim, keys=keys, **sizes)
    for path in files.written:
        print(path)
    readme = files.folder / "README.md"
    print(f"next: {readme}" if readme in files.written else f"next: give {files.written[0]} to {target.capitalize()}")


def _write(target: Target, service: Service, files: Files, **where: Any) -> None:
    if target == "kubernetes":
        from groundup.deploy import kubernetes

        fields = ("namespace", "replicas", "max_replicas", "claim")
        image = where["image"] or f"{service.name}:1"
        kubernetes.write(service, kubernetes.Cluster(image=image, **{key: where[key] for key in fields}), files)
    elif target == "docker":
        from groundup.deploy import docker

        docker.write(service, files)
    else:
        from groundup.deploy import ray

        scaling = ray.Scaling(min_replicas=where["replicas"], max_replicas=where["max_replicas"])
        ray.write(service, scaling, files, keys=where["keys"])


def _watch(target: Target, prefix: str, files: Files) -> None:
    import json

    from groundup.deploy import grafana
    from groundup.deploy.kubernetes import alert_rules

    if target == "prometheus":
        files.write("groundup-alerts.yaml", alert_rules(prefix))
    else:
        files.write("groundup-board.json", json.dumps(grafana.board(prefix), indent=1) + "\n")


def _target(to: str) -> Target:
    from typing import get_args

    from groundup.errors import UserError, nearest

    for target in get_args(Target):
        if target == to:
            found: Target = target
            return found
    what = f"no target named {to!r}" if to else "where to?"
    raise UserError(what, where="--to", fix=nearest(to, get_args(Target)))


def _engine(engine: str) -> str:
    from groundup.errors import UserError, nearest

    if engine not in ("groundup", "vllm"):
        raise UserError(f"no engine named {engine!r}", where="--engine", fix=nearest(engine, ("groundup", "vllm")))
    return engine


def _parsed(parse: Any, given: str | None, flag: str) -> int | None:
    from groundup.errors import UserError

    try:
        return None if given is None else round(parse(given))
    except ValueError as error:
        raise UserError(str(error), where=flag) from error
