"""`groundup deploy`: what is written is accepted, starts safely, and holds no secret."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from groundup import catalog, cli
from groundup.artifact import Store
from groundup.checkpoints import hugging_face
from groundup.deploy import docker, kubernetes, ray
from groundup.deploy.kubernetes import Cluster
from groundup.deploy.service import KEYS, Service, describe
from groundup.deploy.written import Files, yaml_text
from groundup.errors import UserError
from groundup.nn.network import create
from groundup.serving import fit
from groundup.serving.models import Options
from groundup.text.pipelines import SPECIALS, build, finish
from groundup.text.tokenizers import Tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small complete Hugging Face directory."""
    place = tmp_path_factory.mktemp("models") / "Tiny-LM"
    gpt = catalog.load("models", "gpt")
    network = create(gpt, gpt.Config(**gpt.TINY | {"vocab_size": 300}), "language", seed=3)
    hugging_face.save(place, network, generation={"eos_token_id": 2})
    engine = build("bpe")
    finish(engine, "bpe")
    Tokenizer.of_roles(engine, SPECIALS["bpe"]).save(place)
    return place


@pytest.fixture
def service(model: Path) -> Service:
    return describe([f"chat={model}"], name="support", cache_bytes=1 << 30, flags=("--max-queue=64",))


CLUSTER = Cluster(image="registry.example/support:1.2", namespace="ml", replicas=2, max_replicas=6)


def read(folder: Path) -> dict[str, Any]:
    return {path.name: YAML(typ="safe").load(path) for path in folder.glob("*.yaml")}


@pytest.fixture
def written(service: Service, tmp_path: Path) -> dict[str, Any]:
    kubernetes.write(service, CLUSTER, Files(tmp_path / "k8s"))
    return read(tmp_path / "k8s")


# ------------------------------------------------------------------------------ Kubernetes


@pytest.mark.parametrize("version", ["1.29", "1.31", "1.33"])
def test_kubernetes_accepts_every_object_strictly(service: Service, version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for claim in ("", "models"):
        for manifest in kubernetes.objects(service, replace(CLUSTER, claim=claim)):
            validate.validate(json.loads(json.dumps(manifest)), version, strict=True)  # raises
    with pytest.raises(validate.ValidationError):  # the checker does check
        validate.validate(kubernetes.deployment(service, CLUSTER) | {"spec": {"replica": 1}}, version, strict=True)


def test_all_that_kustomize_names_is_there(written: dict[str, Any]) -> None:
    listed = written["kustomization.yaml"]["resources"]
    assert set(listed) == set(written) - {"kustomization.yaml", "prometheus-adapter-values.yaml"}
    assert all(written[name]["metadata"]["namespace"] == "ml" for name in listed)


def test_kubectl_builds_it(service: Service, tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    kubernetes.write(service, CLUSTER, Files(tmp_path / "k8s"))
    done = subprocess.run(["kubectl", "kustomize", tmp_path / "k8s"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("kind: Deployment") >= 1, done.stderr


def test_a_pod_can_do_nothing_but_serve(written: dict[str, Any]) -> None:
    pod = written["deployment.yaml"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/state", "/tmp"}
    assert all("sizeLimit" in volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume)
    policy = written["networkpolicy.yaml"]["spec"]
    assert policy["egress"] == [] and set(policy["policyTypes"]) == {"Ingress", "Egress"}


@pytest.mark.parametrize(
    ("flags", "port"),
    [
        (("--traces=http://collector.monitoring:4318/v1/traces",), 4318),
        (("--log-format=json", "--traces", "https://traces.example/v1/traces"), 443),
    ],
)
def test_traces_may_leave_the_pod_and_nothing_else(service: Service, flags: tuple[str, ...], port: int) -> None:
    (rule,) = kubernetes.network_policy(replace(service, flags=flags), CLUSTER)["spec"]["egress"]
    assert [(one["protocol"], one["port"]) for one in rule["ports"]] == [("TCP", port), ("UDP", 53), ("TCP", 53)]
    with pytest.raises(UserError, match="no address of a collector"):
        kubernetes.network_policy(replace(service, flags=("--traces=collector:4318",)), CLUSTER)


def test_a_pod_gets_what_the_server_reckons_it_needs(service: Service, written: dict[str, Any]) -> None:
    (container,) = written["deployment.yaml"]["spec"]["template"]["spec"]["containers"]
    need, limit = container["resources"]["requests"], container["resources"]["limits"]
    assert need == limit and need["cpu"] == "3"
    free = int(need["memory"].removesuffix("Mi")) << 20
    options = Options(cache_bytes=service.cache_bytes)
    wanted = {name: (facts, options) for name, facts in service.models.items()}
    assert fit.require(wanted, free - 200 * 2**20)  # beside the front: does not raise
    with pytest.raises(UserError):
        fit.require(wanted, service.cache_bytes)
    larger = replace(service, cache_bytes=4 << 30)
    assert larger.memory_bytes - service.memory_bytes == pytest.approx(3 << 30, rel=0.1)


def test_it_starts_and_stops_without_losing_a_request(service: Service, written: dict[str, Any]) -> None:
    deployment = written["deployment.yaml"]["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert container["startupProbe"]["httpGet"]["path"] == container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + service.grace_s
    assert f"--grace={service.grace_s}s" in container["args"]
    assert "replicas" not in deployment  # the autoscaler's
    scaler = written["horizontalpodautoscaler.yaml"]["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 6)
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == kubernetes.WAITING
    (rule,) = written["prometheus-adapter-values.yaml"]["rules"]["custom"]
    assert rule["name"]["as"] == kubernetes.WAITING and "groundup:num_requests_waiting" in rule["seriesQuery"]


def test_labels_and_ports_meet(written: dict[str, Any]) -> None:
    pod = written["deployment.yaml"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    for name, path in {
        "service.yaml": ("selector",),
        "poddisruptionbudget.yaml": ("selector", "matchLabels"),
        "networkpolicy.yaml": ("podSelector", "matchLabels"),
        "deployment.yaml": ("selector", "matchLabels"),
    }.items():
        found = written[name]["spec"]
        for key in path:
            found = found[key]
        assert found.items() <= pod["metadata"]["labels"].items(), name
    assert {port["targetPort"] for port in written["service.yaml"]["spec"]["ports"]} <= ports
    monitor = written["servicemonitor.yaml"]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= written["service.yaml"]["metadata"]["labels"].items()
    assert written["service.yaml"]["metadata"]["labels"][monitor["jobLabel"]] == "groundup"
    assert written["horizontalpodautoscaler.yaml"]["spec"]["scaleTargetRef"]["name"] == "support"
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_no_secret_is_written_and_the_model_is_named_by_its_digest(service: Service, tmp_path: Path) -> None:
    kubernetes.write(service, CLUSTER, Files(tmp_path))
    text = "\n".join(path.read_text() for path in tmp_path.iterdir())
    assert not re.search(r"gu_[0-9A-Za-z]{8}_", text) and "kind: Secret" not in text
    assert service.models["chat"].digest in text


def test_models_too_large_for_an_image_are_mounted(service: Service) -> None:
    manifest = kubernetes.deployment(service, replace(CLUSTER, claim="models"))
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "models"]
    assert mount == {"name": "models", "mountPath": "/models", "readOnly": True}


def test_a_serve_stage_is_deployed_with_its_settings_and_adapters(make_model: Any, tmp_path: Path) -> None:
    model = make_model("language_modeling")
    store = Store(model.parents[1])
    settings = {"grace": "90s", "cache": "32MiB", "threads": 3, "max_queue": 7, "limits": {"max_rows": 5}}
    with store.draft("service", "deployed", stage="serve", section={}) as draft:
        draft.write_json("service.json", {"settings": settings, "models": [{"name": "lm", "digest": model.name}]})
    found = store.find("deployed")
    assert found is not None
    service = describe([str(found.path)], adapters=["terse@lm=runs/terse"], port=9000, grace_s=None)
    arguments = service.arguments()
    assert {"--model=lm=/models/lm", "--adapter=terse@lm=/models/terse", "--port=9000", "--grace=90s"} <= set(arguments)
    assert {"--threads=3", "--cache=32Mi", "--set=max_queue=7", "--set=limits.max_rows=5"} <= set(arguments)
    flags = [argument for argument in arguments if "=/models" not in argument]
    done = CliRunner().invoke(cli.app, [*flags, "--plan", "--keys=k", f"--model=lm={model}"])
    assert done.exit_code == 0, done.output + str(done.exception)  # `groundup serve` knows every flag


# ------------------------------------------------------------------------------ Docker


def test_the_image_runs_as_nobody_and_holds_the_models(service: Service, model: Path, tmp_path: Path) -> None:
    docker.write(service, Files(tmp_path))
    text = (tmp_path / "Dockerfile").read_text()
    lines = text.splitlines()
    assert "USER 10001:10001" in lines and "STOPSIGNAL SIGTERM" in lines and "/readyz" in text
    command = json.loads(next(line for line in lines if line.startswith("CMD ")).removeprefix("CMD "))
    assert command[:2] == ["serve", "--model=chat=/models/chat"] and "--host=0.0.0.0" in command
    assert (tmp_path / "models/chat/model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    composed = YAML(typ="safe").load(tmp_path / "compose.yaml")["services"]["groundup"]
    assert composed["read_only"] and composed["cap_drop"] == ["ALL"]
    assert composed["ports"] == ["127.0.0.1:8000:8000"]
    assert f"./keys.json:{KEYS}:ro" in composed["volumes"]
    assert not (tmp_path / "keys.json").exists()
    docker.write(service, Files(tmp_path))  # again: the same


def test_docker_accepts_the_compose_file(service: Service, tmp_path: Path) -> None:
    docker.write(service, Files(tmp_path))
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    done = subprocess.run(["docker", "compose", "config", "--quiet"], cwd=tmp_path, capture_output=True, text=True)
    if "not a docker command" in done.stderr or "unknown" in done.stderr:
        pytest.skip("docker compose is not installed")
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------ Ray


def test_the_ray_config_names_what_this_package_has(service: Service, tmp_path: Path) -> None:
    ray.write(service, ray.Scaling(min_replicas=1, max_replicas=3), Files(tmp_path), keys="/etc/keys.json")
    (application,) = YAML(typ="safe").load(tmp_path / "serve.yaml")["applications"]
    module, _, attribute = application["import_path"].partition(":")
    assert module == ray.__name__ and callable(getattr(ray, attribute))
    assert ray.Scaling(**application["args"]["scaling"]).max_replicas == 3
    arguments = application["args"]["arguments"]
    assert f"--model=chat={service.models['chat'].folder}" in arguments
    assert not any(argument.startswith(("--host", "--port")) for argument in arguments)
    assert application["args"]["environment"]["GROUNDUP_KEYS"] == "/etc/keys.json"


# ------------------------------------------------------------------------------ the command


def command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli.app, ["deploy", *map(str, arguments)])


def test_the_command_writes_and_says_what_is_next(model: Path, tmp_path: Path) -> None:
    done = command(
        f"chat={model}", "--to", "kubernetes", "--name", "support", "--image", "a/b:1", "--out", tmp_path / "k"
    )
    assert done.exit_code == 0, done.output + str(done.exception)
    assert done.output.splitlines()[-1] == f"next: {tmp_path / 'k' / 'README.md'}"
    for target in ("docker", "ray", "prometheus", "grafana"):
        models = [f"chat={model}"] if target in ("docker", "ray") else []
        done = command(*models, "--to", target, "--out", tmp_path / target)
        assert done.exit_code == 0, done.output + str(done.exception)
    assert json.loads((tmp_path / "grafana/groundup-board.json").read_text())["panels"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "kubernets", "MODEL"], "did you mean 'kubernetes'"),
        (["MODEL"], "where to?"),
        (["--to", "kubernetes"], "no model is named"),
        (["--to", "kubernetes", "MODEL", "--name", "Support_1"], "cannot name a service"),
        (["--to", "kubernetes", "MODEL", "--image", "a/b"], "has no tag"),
        (["--to", "kubernetes", "a=MODEL", "a=MODEL"], "two models are named 'a'"),
        (["--to", "kubernetes", "a/b=MODEL"], "cannot name a folder"),
        (["--to", "kubernetes", "MODEL", "--replicas", "9"], "9 replicas at least and 8 at most"),
        (["--to", "kubernetes", "MODEL", "--cache", "much"], "--cache"),
        (["--to", "kubernetes", "MODEL", "--engine", "vlm"], "did you mean 'vllm'"),
        (["--to", "kubernetes", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_named(model: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    filled = [argument.replace("MODEL", str(model)) for argument in arguments]
    done = command(*filled, "--out", tmp_path / "out")
    assert isinstance(done.exception, UserError) and said in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_files_that_were_changed_are_not_written_over(service: Service, tmp_path: Path) -> None:
    kubernetes.write(service, CLUSTER, Files(tmp_path))
    (tmp_path / "service.yaml").write_text("mine\n")
    with pytest.raises(UserError, match="not what would be written"):
        kubernetes.write(service, CLUSTER, Files(tmp_path))
    assert (tmp_path / "service.yaml").read_text() == "mine\n"
    kubernetes.write(service, CLUSTER, Files(tmp_path, force=True))
    assert (tmp_path / "service.yaml").read_text() != "mine\n"


def test_yaml_reads_back_as_it_was() -> None:
    data = {"a": ["1", 1, True, "yes", "on", "0o7", ""], "long": "x " * 200, "lines": "a\n b: c\n", "empty": []}
    assert YAML(typ="safe").load(yaml_text(data)) == data
