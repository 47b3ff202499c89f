"""A container image of a service, and a compose file that runs it with Prometheus and Grafana beside it.

The models are copied into the image: what was tested is what runs, on every host, with no volume to keep in
step. (`groundup deploy --to kubernetes --claim` mounts them instead, for models too large to ship.) Links to the
store are resolved, since a build reads nothing outside its folder.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from groundup import __version__
from groundup.artifact import open_artifact
from groundup.deploy import grafana
from groundup.deploy.kubernetes import WITHDRAW_S, alert_rules
from groundup.deploy.service import KEYS, MODELS, STATE, USER, Service
from groundup.deploy.written import Files, yaml_text

PYTHON = "3.12"
VLLM = "v0.12.0"
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
"""Where PyTorch keeps its builds without CUDA, which are a tenth of the size."""


def write(service: Service, files: Files) -> None:
    """Write Dockerfile, compose.yaml and what they need, and copy the models beside them."""
    files.write("Dockerfile", dockerfile(service))
    files.write(".dockerignore", "keys.json\ncompose.yaml\nprometheus\ngrafana\n")
    files.write("wheels/README", "Wheels put here are installed instead of released ones: groundup's own, for one.\n")
    files.write("compose.yaml", yaml_text(compose(service)))
    files.write("prometheus/prometheus.yml", yaml_text(prometheus(service)))
    files.write("prometheus/alerts.yaml", alert_rules(service.prefix))
    files.write("grafana/groundup.json", json.dumps(grafana.board(service.prefix), indent=1) + "\n")
    files.write("README.md", _readme(service))
    folders = {name: Path(facts.folder) for name, facts in service.models.items()}
    folders |= {name: open_artifact(adapter.path).path for name, adapter in service.adapters.items()}
    for name, folder in folders.items():
        _copy(folder, files.folder / "models" / name)


def dockerfile(service: Service) -> str:
    """The recipe of the image."""
    command = json.dumps(service.arguments())
    environment = " ".join(f"{name}={value}" for name, value in service.environment().items())
    if service.engine == "vllm":
        return _on_vllm(service, command, environment)
    return f"""# Written by `groundup deploy`. Two steps, so that pip and its leftovers stay behind.
FROM python:{PYTHON}-slim AS build
COPY wheels/ /wheels/
RUN python -m venv /app \\
 && /app/bin/pip install --no-cache-dir --find-links /wheels --extra-index-url {CPU_BUILDS} \\
    'groundup[serve,telemetry]=={__version__}'

FROM python:{PYTHON}-slim
RUN useradd --uid {USER} --no-create-home --shell /usr/sbin/nologin groundup \\
 && install -d -o {USER} -g {USER} {STATE} {KEYS.rpartition("/")[0]}
COPY --from=build /app /app
COPY models/ {MODELS}/
ENV PATH=/app/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 {environment}
USER {USER}:{USER}
WORKDIR {STATE}
EXPOSE {service.port}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --start-interval=2s --retries=3 \\
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:{service.port}/readyz', timeout=4)"]
ENTRYPOINT ["groundup"]
CMD {command}
"""


def _on_vllm(service: Service, command: str, environment: str) -> str:
    """vLLM's own image, which has its CUDA, with groundup in front."""
    return f"""# Written by `groundup deploy`.
FROM vllm/vllm-openai:{VLLM}
COPY wheels/ /wheels/
RUN pip install --no-cache-dir --find-links /wheels 'groundup[serve,telemetry]=={__version__}' \\
 && useradd --uid {USER} --no-create-home --shell /usr/sbin/nologin groundup \\
 && install -d -o {USER} -g {USER} {STATE} {KEYS.rpartition("/")[0]}
COPY models/ {MODELS}/
ENV PYTHONUNBUFFERED=1 {environment}
USER {USER}:{USER}
WORKDIR {STATE}
EXPOSE {service.port}
STOPSIGNAL SIGTERM
ENTRYPOINT ["groundup"]
CMD {command}
"""


def compose(service: Service) -> dict[str, object]:
    """The service on one host; `--profile watch` adds Prometheus with the alert rules, and Grafana with the board."""
    return {
        "name": service.name,
        "services": {
            "groundup": {
                "build": ".",
                "image": f"{service.name}:{__version__}",
                "restart": "unless-stopped",
                "ports": [f"127.0.0.1:{service.port}:{service.port}"],
                "read_only": True,
                "tmpfs": ["/tmp"],
                "cap_drop": ["ALL"],
                "security_opt": ["no-new-privileges:true"],
                "mem_limit": f"{service.memory_bytes >> 20}m",
                "cpus": service.cpus,
                "stop_grace_period": f"{WITHDRAW_S + service.grace_s + 10}s",
                "volumes": [f"./keys.json:{KEYS}:ro", f"state:{STATE}"],
            },
            "prometheus": {
                "image": "prom/prometheus:v3.5.0",
                "profiles": ["watch"],
                "ports": ["127.0.0.1:9090:9090"],
                "volumes": ["./prometheus:/etc/prometheus:ro", "./scraper.key:/run/secrets/scraper.key:ro"],
            },
            "grafana": {
                "image": "grafana/grafana:12.1.0",
                "profiles": ["watch"],
                "ports": ["127.0.0.1:3000:3000"],
                "volumes": ["./grafana:/boards:ro"],
            },
        },
        "volumes": {"state": {}},
    }


def prometheus(service: Service) -> dict[str, object]:
    """A Prometheus that scrapes the service with a key of its own and knows the alert rules."""
    job = {
        "job_name": "groundup",
        "metrics_path": "/metrics",
        "authorization": {"type": "Bearer", "credentials_file": "/run/secrets/scraper.key"},
        "static_configs": [{"targets": [f"groundup:{service.port}"]}],
    }
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [job],
    }


def _copy(source: Path, target: Path) -> None:
    """A model's files, as real files: hard links where the disk allows, so that nothing is stored twice."""
    if target.exists():
        shutil.rmtree(target)

    def link(one: str, other: str) -> None:
        try:
            os.link(os.path.realpath(one), other)
        except OSError:
            shutil.copyfile(one, other)

    shutil.copytree(source, target, copy_function=link)


def _readme(service: Service) -> str:
    return f"""# {service.name} in a container

Written by `groundup deploy`. The keys first; the file holds their digests only, and is mounted, not built in:

```bash
GROUNDUP_KEYS=keys.json groundup keys create --name me       # prints the key
chmod 644 keys.json                                          # read by the container's own user, {USER}
docker compose up --build --detach
curl -H "Authorization: Bearer gu_…" http://127.0.0.1:{service.port}/v1/models
```

With Prometheus on port 9090 and Grafana on 3000 (import `grafana/groundup.json`):

```bash
GROUNDUP_KEYS=keys.json groundup keys create --name prometheus --scope metrics    # its key goes into scraper.key
docker compose --profile watch up --detach
```

`docker compose stop` lets running requests finish for up to {service.grace_s} s. The container is given
{service.cpus} processors and {service.memory_bytes >> 20} MiB, runs as user {USER} and can write to `{STATE}` and
`/tmp` only.
"""
