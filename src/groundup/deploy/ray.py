"""A service on Ray Serve: replicas on a cluster, as many as the requests in flight need.

Each Ray replica owns one whole groundup server, on a loopback port of its own, and passes requests on to it:
keys, limits, supervision, readiness and draining are those of `groundup serve`, not copies of them. Limits per
key hold within a replica, so over the cluster they are as many times as large as there are replicas.

`groundup deploy --to ray` writes a config file for `serve deploy`; `application` is what it builds, for use
from Python. Raises MissingExtra without Ray.

Reference: Ray Serve's `serve.ingress` (an ASGI builder is called in the replica) and `AutoscalingConfig`.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from groundup.config import Section
from groundup.deploy.service import Service
from groundup.deploy.upstream import Child, Hosted
from groundup.deploy.written import Files, yaml_text
from groundup.errors import MissingExtra, UserError
from groundup.serving.refusals import App
from groundup.units import Duration, PositiveCount


class Scaling(Section):
    """When replicas come and go. Ray counts requests in flight: running and waiting, at the proxy and in replicas."""

    min_replicas: PositiveCount = 1
    max_replicas: PositiveCount = 4
    target: Annotated[float, Field(gt=0)] = 8.0
    """Requests in flight for each replica that are aimed at."""
    most: PositiveCount = 64
    """Requests that a replica is given at a time; the server's own queue is bounded besides."""
    queued: PositiveCount = 256
    """Requests that may wait in Ray's proxy; more are answered with 503."""
    upscale_delay: Duration = 10.0
    """Seconds that the load must stay high before replicas are added."""
    downscale_delay: Duration = 300.0
    """Seconds that it must stay low before some are removed."""
    interval: Duration = 5.0
    """Seconds between two looks at the load, and half of the window that is averaged."""


def application(
    arguments: list[str],
    scaling: Scaling | None = None,
    *,
    name: str = "groundup",
    cpus: float = 3,
    memory_bytes: int | None = None,
    environment: Mapping[str, str] | None = None,
    grace_s: float = 30.0,
) -> Any:
    """The Ray Serve application of a service; give it to `ray.serve.run`.

    arguments are those of `groundup serve` without host and port. Every node must have the models' files.
    """
    serve = _serve()
    scaling = scaling or Scaling()
    if scaling.min_replicas > scaling.max_replicas:
        what = f"{scaling.min_replicas} replicas at least and {scaling.max_replicas} at most"
        raise UserError(what, where="--min-replicas", fix="let --max-replicas be no less")
    given = dict(environment or {})

    def build() -> App:
        """Called in each replica: its server and what passes requests on to it."""
        return replica(arguments, given, grace_s=grace_s)

    actor: dict[str, Any] = {"num_cpus": cpus}
    if memory_bytes is not None:
        actor["memory"] = memory_bytes
    options = {
        "name": name,
        "max_ongoing_requests": scaling.most,
        "max_queued_requests": scaling.queued,
        "graceful_shutdown_timeout_s": grace_s + 10,
        "ray_actor_options": actor,
        "autoscaling_config": {
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target,
            "upscale_delay_s": scaling.upscale_delay,
            "downscale_delay_s": scaling.downscale_delay,
            "metrics_interval_s": scaling.interval,
            "look_back_period_s": 2 * scaling.interval,
        },
    }
    return serve.deployment(serve.ingress(build)(), **options).bind()


def replica(arguments: list[str], environment: Mapping[str, str], *, grace_s: float) -> App:
    """One server and what passes requests on to it, as an application with a lifespan."""
    port = _free_port()
    command = [sys.executable, "-m", "groundup", *arguments, "--host=127.0.0.1", f"--port={port}"]
    return Hosted(Child(command, ("127.0.0.1", port), "/readyz", environment, grace_s=grace_s))


def app(args: Mapping[str, Any]) -> Any:
    """What the config file's `import_path` names: Ray calls it with the file's `args`."""
    return application(**{**args, "scaling": Scaling(**args.get("scaling", {}))})


def write(service: Service, scaling: Scaling, files: Files, *, keys: str) -> None:
    """Write the config file for `serve deploy`. `keys` is where every node finds the file of keys."""
    hosted = [
        argument for argument in service.arguments(in_place=True) if not argument.startswith(("--host=", "--port="))
    ]
    environment = service.environment() | {"GROUNDUP_KEYS": keys}
    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "127.0.0.1", "port": service.port, "request_timeout_s": 600},
        "applications": [
            {
                "name": service.name,
                "route_prefix": "/",
                "import_path": "groundup.deploy.ray:app",
                "args": {
                    "name": service.name,
                    "arguments": hosted,
                    "scaling": scaling.model_dump(mode="json"),
                    "cpus": service.cpus,
                    "memory_bytes": service.memory_bytes,
                    "environment": environment,
                    "grace_s": service.grace_s,
                },
            }
        ],
    }
    files.write("serve.yaml", yaml_text(config))
    files.write("README.md", _readme(service))


def _readme(service: Service) -> str:
    return f"""# {service.name} on Ray Serve

Written by `groundup deploy`. Every node needs `pip install 'groundup[serve,cluster]'`, the models under the paths
that `serve.yaml` names, and the file of keys. On a running cluster:

```bash
export RAY_USAGE_STATS_ENABLED=0     # before `ray start`: Ray reports its use unless told not to
serve deploy serve.yaml
serve status
```

Ray's proxy listens on 127.0.0.1:{service.port} of every node; put a load balancer with TLS before it. Replicas are
added when more requests are in flight than `target` for each, and removed slowly.
"""


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _serve() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use unless told not to; we tell nobody
    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtra("ray", "cluster", needed_for="deploying to Ray") from error
    return serve
