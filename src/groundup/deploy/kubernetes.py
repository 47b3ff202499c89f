"""Kubernetes manifests of a service: it starts safely, scales by its queue, and stops without losing a request.

What is decided here, and why:

- **Guaranteed resources**, limits equal to requests and processors in whole numbers: compute threads fall
  several times when they share a core, and a node's static CPU policy gives whole processors exclusively.
- **Startup by /readyz, liveness by /livez**: loading may take minutes and is no reason to be killed. A
  crashed or hung engine is restarted inside the pod; liveness only watches the front, patiently, so that a
  burst does not get a replica killed.
- **A pause before SIGTERM**: endpoints are withdrawn while the pod still answers; then the server drains.
- **Scaling by waiting requests**, not processor load: an engine at work is always at full load.
- **No egress, no token, no root, nothing writable** but two small volumes: the server calls nobody, except a
  collector of traces, if it is given one.
- **No secret is in a file**: keys and the scraper's key are Secrets made by the commands in README.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup.deploy import grafana
from groundup.deploy.service import KEYS, MODELS, STATE, USER, Service
from groundup.deploy.written import Files, yaml_text
from groundup.errors import UserError
from groundup.serving.tracing import collector_port
from groundup.yaml import Yaml

Manifest = dict[str, Any]
WITHDRAW_S = 5
"""How long a pod goes on answering while the cluster stops sending to it."""
WAITING = "groundup_requests_waiting"
"""The metric that replicas follow: `num_requests_waiting` of a pod, renamed for an API that takes no colon."""
ALERTS = Path(__file__).with_name("alerts.yaml")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where and how large."""

    image: str
    """What the Dockerfile was built as, with a tag: registry.example/team/service:1."""
    namespace: str = "default"
    replicas: int = 2
    max_replicas: int = 8
    waiting_per_replica: int = 4
    """Waiting requests of a replica, on average, above which another is started."""
    claim: str = ""
    """A PersistentVolumeClaim with the models, mounted read-only; otherwise they are in the image."""
    monitoring_namespace: str = "monitoring"
    """Where Prometheus runs: besides pods of the own namespace, only it may connect."""


def write(service: Service, cluster: Cluster, files: Files) -> None:
    """Write the manifests, with a README of the commands that apply them.

    Raises UserError for a cluster that cannot be: an image without a tag, fewer replicas at most than at least.
    """
    _check(cluster)
    core = {
        "serviceaccount": service_account(service, cluster),
        "deployment": deployment(service, cluster),
        "service": service_object(service, cluster),
        "poddisruptionbudget": disruption_budget(service, cluster),
        "horizontalpodautoscaler": autoscaler(service, cluster),
        "networkpolicy": network_policy(service, cluster),
        # These two need the Prometheus operator's resource definitions.
        "servicemonitor": service_monitor(service, cluster),
        "prometheusrule": prometheus_rule(service, cluster),
        "dashboard": dashboard(service, cluster),
    }
    for name, manifest in core.items():
        files.write(f"{name}.yaml", yaml_text(manifest))
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": cluster.namespace,
        "resources": [f"{name}.yaml" for name in core],
    }
    files.write("kustomization.yaml", yaml_text(kustomization))
    files.write("prometheus-adapter-values.yaml", yaml_text(adapter_values(service)))
    files.write("README.md", _readme(service, cluster))


def _check(cluster: Cluster) -> None:
    image = cluster.image.rpartition("/")[2]
    if ":" not in image and "@" not in image:
        fix = f"name the build: {cluster.image}:1; a pod must not change under a tag that moves"
        raise UserError(f"the image {cluster.image!r} has no tag", where="--image", fix=fix)
    if not 1 <= cluster.replicas <= cluster.max_replicas:
        what = f"{cluster.replicas} replicas at least and {cluster.max_replicas} at most"
        raise UserError(
            what, where="--replicas", fix="let --max-replicas be no less than --replicas, and both 1 or more"
        )


def _meta(service: Service, cluster: Cluster, ending: str = "", **annotations: str) -> Manifest:
    found: Manifest = {"name": f"{service.name}{ending}", "namespace": cluster.namespace, "labels": labels(service)}
    return found | ({"annotations": annotations} if annotations else {})


def selector(service: Service) -> dict[str, str]:
    """The labels that find the service's pods; they never change."""
    return {"app.kubernetes.io/name": "groundup", "app.kubernetes.io/instance": service.name}


def labels(service: Service) -> dict[str, str]:
    """The labels of everything that belongs to the service."""
    return selector(service) | {"app.kubernetes.io/component": "serving", "app.kubernetes.io/managed-by": "groundup"}


def service_account(service: Service, cluster: Cluster) -> Manifest:
    """An identity of its own, without a token: the server never talks to the cluster."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _meta(service, cluster),
        "automountServiceAccountToken": False,
    }


def deployment(service: Service, cluster: Cluster) -> Manifest:
    """The pods."""
    digests = {f"groundup/digest-of-{name}": facts.digest for name, facts in service.models.items()}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _meta(service, cluster),
        "spec": {
            # `replicas` is left to the autoscaler: applying the file again must not undo what it did.
            "revisionHistoryLimit": 5,
            "progressDeadlineSeconds": 1200,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": selector(service)},
            "template": {
                "metadata": {"labels": labels(service), "annotations": digests},
                "spec": _pod(service, cluster),
            },
        },
    }


def _pod(service: Service, cluster: Cluster) -> Manifest:
    volumes: list[Manifest] = [
        {"name": "keys", "secret": {"secretName": f"{service.name}-keys", "defaultMode": 0o440}},
        {"name": "state", "emptyDir": {"sizeLimit": "2Gi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
    ]
    if service.engine == "vllm":  # its processes pass tensors through shared memory
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}})
    if cluster.claim:
        volumes.append({"name": "models", "persistentVolumeClaim": {"claimName": cluster.claim, "readOnly": True}})
    return {
        "serviceAccountName": service.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": WITHDRAW_S + service.grace_s + 10,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(service)},
            }
        ],
        "containers": [_container(service, cluster)],
        "volumes": volumes,
    }


def _container(service: Service, cluster: Cluster) -> Manifest:
    need = {"cpu": str(service.cpus), "memory": f"{service.memory_bytes >> 20}Mi"}
    need |= {"nvidia.com/gpu": str(service.gpus)} if service.engine == "vllm" else {}
    mounts: list[Manifest] = [
        {"name": "keys", "mountPath": KEYS.rpartition("/")[0], "readOnly": True},
        {"name": "state", "mountPath": STATE},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if service.engine == "vllm":
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    if cluster.claim:
        mounts.append({"name": "models", "mountPath": MODELS, "readOnly": True})
    return {
        "name": "groundup",
        "image": cluster.image,
        "imagePullPolicy": "IfNotPresent",
        "args": service.arguments(),
        "workingDir": STATE,
        "env": [{"name": name, "value": value} for name, value in service.environment().items()],
        "ports": [{"name": "http", "containerPort": service.port, "protocol": "TCP"}],
        "resources": {"requests": need, "limits": dict(need)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "startupProbe": _probe("/readyz", period=5, failures=240),
        "readinessProbe": _probe("/readyz", period=5, failures=2),
        "livenessProbe": _probe("/livez", period=10, failures=6),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(WITHDRAW_S)]}}},
        "volumeMounts": mounts,
    }


def _probe(path: str, *, period: int, failures: int) -> Manifest:
    ask = {"path": path, "port": "http"}
    return {"httpGet": ask, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}


def service_object(service: Service, cluster: Cluster) -> Manifest:
    """The address within the cluster."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(service, cluster),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(service),
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def disruption_budget(service: Service, cluster: Cluster) -> Manifest:
    """One pod at a time may be evicted. Not `minAvailable: 1`: with one replica no node could be drained."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _meta(service, cluster),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(service)}},
    }


def autoscaler(service: Service, cluster: Cluster) -> Manifest:
    """Replicas by waiting requests: up at once, down slowly, since a new replica has an empty cache."""
    metric = {
        "type": "Pods",
        "pods": {
            "metric": {"name": WAITING},
            "target": {"type": "AverageValue", "averageValue": str(cluster.waiting_per_replica)},
        },
    }
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _meta(service, cluster),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": service.name},
            "minReplicas": cluster.replicas,
            "maxReplicas": cluster.max_replicas,
            "metrics": [metric],
            "behavior": {
                "scaleUp": {
                    "stabilizationWindowSeconds": 0,
                    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 30}],
                },
                "scaleDown": {
                    "stabilizationWindowSeconds": 300,
                    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
                },
            },
        },
    }


def network_policy(service: Service, cluster: Cluster) -> Manifest:
    """Who may connect: pods of the namespace, and Prometheus. Where the server may connect: nowhere, or
    to the port of a collector of traces and to what finds its address. A policy knows ports, but no names of hosts."""
    prometheus = {"kubernetes.io/metadata.name": cluster.monitoring_namespace}
    out: list[tuple[str, int]] = []
    if service.traces:
        out = [("TCP", collector_port(service.traces)), ("UDP", 53), ("TCP", 53)]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _meta(service, cluster),
        "spec": {
            "podSelector": {"matchLabels": selector(service)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {
                    "from": [{"podSelector": {}}, {"namespaceSelector": {"matchLabels": prometheus}}],
                    "ports": [{"protocol": "TCP", "port": "http"}],
                }
            ],
            "egress": [{"ports": [{"protocol": kind, "port": port} for kind, port in out]}] if out else [],
        },
    }


def service_monitor(service: Service, cluster: Cluster) -> Manifest:
    """How Prometheus finds /metrics, and the key it shows there."""
    key = {"name": f"{service.name}-metrics-key", "key": "key"}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": _meta(service, cluster),
        "spec": {
            "jobLabel": "app.kubernetes.io/name",  # so that the alerts' `job="groundup"` holds
            "selector": {"matchLabels": selector(service)},
            "endpoints": [
                {
                    "port": "http",
                    "path": "/metrics",
                    "interval": "15s",
                    "authorization": {"type": "Bearer", "credentials": key},
                }
            ],
        },
    }


def prometheus_rule(service: Service, cluster: Cluster) -> Manifest:
    """The alert rules."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": _meta(service, cluster),
        "spec": {"groups": Yaml.parse(alert_rules(service.prefix), ALERTS).data["groups"]},
    }


def alert_rules(prefix: str = "groundup") -> str:
    """The text of the shipped alert rules, for metrics with this prefix."""
    return ALERTS.read_text(encoding="utf-8").replace("groundup:", f"{prefix}:")


def dashboard(service: Service, cluster: Cluster) -> Manifest:
    """The board as Grafana's sidecar picks it up."""
    meta = _meta(service, cluster, "-dashboard")
    meta["labels"] = {**meta["labels"], "grafana_dashboard": "1"}
    board = json.dumps(grafana.board(service.prefix), indent=1)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"groundup.json": board}}


def adapter_values(service: Service) -> Manifest:
    """Values for the prometheus-adapter chart: what gives the autoscaler its metric."""
    name = f"{service.prefix}:num_requests_waiting"
    return {
        "rules": {
            "custom": [
                {
                    "seriesQuery": f'{{__name__="{name}",namespace!="",pod!=""}}',
                    "resources": {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}},
                    "name": {"as": WAITING},
                    "metricsQuery": "sum(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)",
                }
            ]
        }
    }


def objects(service: Service, cluster: Cluster) -> Iterable[Manifest]:
    """Every manifest that a plain cluster knows (not those of the Prometheus operator)."""
    for make in (
        service_account,
        deployment,
        service_object,
        disruption_budget,
        autoscaler,
        network_policy,
        dashboard,
    ):
        yield make(service, cluster)


def _readme(service: Service, cluster: Cluster) -> str:
    name, space = service.name, cluster.namespace
    return f"""# {name} on Kubernetes

Written by `groundup deploy`. Once, make the two Secrets (no key is in these files):

```bash
export GROUNDUP_KEYS=keys.json
groundup keys create --name {name}                  # prints the key of your programs
groundup keys create --name prometheus --scope metrics   # prints the key of the scraper
kubectl -n {space} create secret generic {name}-keys --from-file=keys.json
kubectl -n {space} create secret generic {name}-metrics-key --from-literal=key=THE_SCRAPERS_KEY
```

`servicemonitor.yaml` and `prometheusrule.yaml` need the Prometheus operator: take both out of
`kustomization.yaml` where there is none. The autoscaler needs prometheus-adapter, installed with
`prometheus-adapter-values.yaml`; without it the service keeps {cluster.replicas} replicas. Then:

```bash
kubectl apply -k .
kubectl -n {space} rollout status deployment/{name}
kubectl -n {space} port-forward service/{name} 8000:80
```

A pod needs {service.cpus} processors and {service.memory_bytes >> 20} MiB. A rollout starts the new pod, waits for
/readyz (a token generated), and only then stops an old one, which finishes what it runs for up to
{service.grace_s} s. To go back: `kubectl -n {space} rollout undo deployment/{name}`.
"""
