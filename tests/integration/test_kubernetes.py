"""What the manifests for Kubernetes promise, as files and as kubectl renders them."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from typing import TYPE_CHECKING, Any

import kubernetes_validate  # type: ignore[import-untyped] # it brings no types
import pytest
import yaml

from authz.core.endpoints import ENDPOINTS
from authz.core.model import Scope
from tests.manifests import (
    FOLDER,
    KUBECTL,
    ROOT,
    Manifest,
    containers,
    containers_of,
    gateway_pod,
    kustomized,
    moved,
    named,
    pods,
    rendered,
    written,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Manifests = list[Manifest]

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
# The oldest that runs native sidecars by itself, and the newest that is known.
KUBERNETES = ("1.29", kubernetes_validate.latest_version())
# Kinds of others, whose schemas are not at hand.
FOREIGN = {"ServiceMonitor"}

WRITTEN = ["namespace", "base", "migrate", "manage", "pull", "examples/remote"]
RENDERED = [
    "overlays/dev",
    "overlays/production",
    "overlays/production/migrate",
    "overlays/production/manage",
    "examples/remote",
]
APPLIED_WITHOUT_NAMESPACE = sorted(
    set(
        re.findall(
            r"kubectl (?:apply|delete) -k deploy/kubernetes/(\S+)",
            (ROOT / "docs/kubernetes.md").read_text(),
        )
    )
)
needs_kubectl = [
    pytest.mark.kubectl,
    pytest.mark.skipif(KUBECTL is None, reason="there is no kubectl"),
]


def rendering(parts: list[str]) -> list[Any]:
    """Return what parametrizes a test over parts as kubectl renders them."""
    return [
        pytest.param((rendered, part), id=f"rendered {part}", marks=needs_kubectl)
        for part in parts
    ]


EVERY = [
    *(pytest.param((written, part), id=part) for part in WRITTEN),
    *rendering(RENDERED),
]
GATEWAYS = [
    pytest.param((written, "base"), id="base"),
    *rendering(RENDERED[:2]),
]


@pytest.fixture(scope="session")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Manifests]:
    """Read or render each part once."""
    checkout = tmp_path_factory.mktemp("checkout")
    return cache(lambda how, part: how(part, checkout))


@pytest.fixture
def manifests(
    request: pytest.FixtureRequest, read: Callable[..., Manifests]
) -> Manifests:
    return read(*request.param)


every = pytest.mark.parametrize("manifests", EVERY, indirect=True)
of_production = pytest.mark.parametrize(
    "manifests", rendering(RENDERED[1:]), indirect=True
)
every_gateway = pytest.mark.parametrize("manifests", GATEWAYS, indirect=True)


@every
@pytest.mark.parametrize("version", KUBERNETES)
def test_each_manifest_fits_the_schema_of_kubernetes(
    manifests: Manifests, version: str
) -> None:
    for manifest in manifests:
        if manifest["kind"] not in FOREIGN:
            kubernetes_validate.validate(manifest, version, strict=True)


@every
def test_each_pod_is_as_restricted_as_pod_security_asks(manifests: Manifests) -> None:
    for pod in pods(manifests):
        whole = pod["securityContext"]
        assert whole["runAsNonRoot"] is True
        assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        allowed = {"name", "emptyDir", "configMap", "secret"}
        assert all(volume.keys() <= allowed for volume in pod.get("volumes", ()))
        for container in containers_of(pod):
            own = container["securityContext"]
            assert own.keys() <= {
                "allowPrivilegeEscalation",
                "readOnlyRootFilesystem",
                "capabilities",
                "runAsUser",
                "runAsGroup",
            }
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert own.get("runAsUser", whole["runAsUser"]) > 0
            assert not any("hostPort" in port for port in container.get("ports", ()))


@every
def test_no_pod_may_speak_to_the_cluster(manifests: Manifests) -> None:
    for pod in pods(manifests):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False


@every
def test_each_image_is_of_a_version(manifests: Manifests) -> None:
    for container in containers(manifests):
        image, _, tag = container["image"].rpartition(":")
        assert re.match(r"v?\d+\.\d+", tag), container["image"]
        if image.endswith("authz"):
            assert tag == VERSION


@every
def test_each_image_is_the_one_that_compose_runs(manifests: Manifests) -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    for container in containers(manifests):
        assert container["image"].removeprefix("registry.example.com/") in compose


@every
def test_each_container_says_what_it_needs(manifests: Manifests) -> None:
    for container in containers(manifests):
        needs = container["resources"]
        assert needs["requests"].keys() == {"cpu", "memory"}
        assert "memory" in needs["limits"]


@every
def test_probes_ask_what_the_kubelet_can_reach(manifests: Manifests) -> None:
    """It asks the address of the pod, never 127.0.0.1, which is where metrics are."""
    for container in containers(manifests):
        ports = {port.get("name") for port in container.get("ports", ())}
        for probe in (container.get(f"{kind}Probe", {}) for kind in _PROBES):
            asked = probe.get("httpGet") or probe.get("tcpSocket")
            assert asked is None or (asked["port"] in ports and "host" not in asked)


_PROBES = ("startup", "readiness", "liveness")


@every
def test_no_secret_stands_in_a_manifest(manifests: Manifests) -> None:
    for container in containers(manifests):
        for variable in container.get("env", ()):
            if re.search("URL|SECRET|PASSWORD", variable["name"]):
                assert "secretKeyRef" in variable["valueFrom"], variable["name"]


def test_no_secret_stands_in_a_file() -> None:
    files = [file for file in FOLDER.rglob("*") if file.suffix in {".yaml", ".sh"}]
    text = "\n".join(file.read_text() for file in files)
    assert "kind: Secret\n" not in text.replace("{kind: Secret", "")
    # Of a URL with a password in it there is one, which secrets.sh fills in.
    assert re.findall(r"\w+://[^\s:@]+:[^\s@]+@", text) == ["postgresql://$1:$2@"]


@every_gateway
def test_ollama_is_reached_by_envoy_alone(manifests: Manifests) -> None:
    ollama = gateway_pod(manifests)["ollama"]
    told = {variable["name"]: variable["value"] for variable in ollama["env"]}
    assert told["OLLAMA_HOST"] == "127.0.0.1:11434"
    assert told["OLLAMA_NO_CLOUD"] == "1"
    assert "ports" not in ollama
    others = [m for m in manifests if m["kind"] in {"Service", "NetworkPolicy"}]
    assert "11434" not in yaml.safe_dump(others)


@every_gateway
def test_clients_find_one_port(manifests: Manifests) -> None:
    (port,) = named(manifests, "Service", "gateway")["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (8080, 8080)
    policy = named(manifests, "NetworkPolicy", "gateway")["spec"]
    assert policy["ingress"] == [{"ports": [{"port": 8080}]}]


@every
def test_no_service_needs_the_name_of_a_port_of_a_sidecar(manifests: Manifests) -> None:
    """Kubernetes before 1.32 finds ports of native sidecars by number alone."""
    found = {
        port["name"]
        for pod in pods(manifests)
        for container in pod["containers"]
        for port in container.get("ports", ())
        if "name" in port
    }
    services = [m["spec"] for m in manifests if m["kind"] == "Service"]
    for port in (port for service in services for port in service["ports"]):
        target = port.get("targetPort", port["port"])
        assert isinstance(target, int) or target in found, target


@every
def test_what_is_busy_is_not_restarted_as_if_it_were_dead(manifests: Manifests) -> None:
    for container in containers(manifests):
        if alive := container.get("livenessProbe"):
            assert alive["periodSeconds"] * alive["failureThreshold"] >= PATIENCE_S


PATIENCE_S = 300


@pytest.mark.parametrize(
    "manifests", rendering(APPLIED_WITHOUT_NAMESPACE), indirect=True
)
def test_nothing_lands_in_the_namespace_that_happens_to_be_current(
    manifests: Manifests,
) -> None:
    for manifest in manifests:
        if manifest["kind"] != "Namespace":
            assert "namespace" in manifest["metadata"], manifest


@every_gateway
def test_the_sockets_are_open_to_envoy_and_authz_alone(manifests: Manifests) -> None:
    """A folder that does not exist yet is made for everybody: so it comes first."""
    pod = named(manifests, "StatefulSet", "gateway")["spec"]["template"]["spec"]
    first, authz, envoy = pod["initContainers"]
    assert [first["name"], authz["name"], envoy["name"]] == [
        "socket-folder",
        "authz",
        "envoy",
    ]
    assert "restartPolicy" not in first
    assert "--mode=0700" in first["command"]
    mounted = {"name": "run", "mountPath": "/run/authz", "subPath": "sockets"}
    for sidecar in (authz, envoy):
        assert sidecar["restartPolicy"] == "Always"
        assert mounted in sidecar["volumeMounts"]
        assert "runAsUser" not in sidecar["securityContext"]
    (ollama,) = pod["containers"]
    assert ollama["securityContext"]["runAsUser"] != pod["securityContext"]["runAsUser"]
    assert "run" not in {mount["name"] for mount in ollama["volumeMounts"]}


@every_gateway
def test_a_pod_that_ends_has_time_for_its_longest_stream(manifests: Manifests) -> None:
    listener = (ROOT / "envoy/listener.yaml").read_text()
    longest = re.search(r"max_stream_duration: (\d+)s", listener)
    waits = gateway_pod(manifests)["ollama"]["lifecycle"]["preStop"]["exec"]["command"]
    before = re.search(r"sleep (\d+)", waits[-1])
    pod = named(manifests, "StatefulSet", "gateway")["spec"]["template"]["spec"]
    assert longest
    assert before
    least = int(longest[1]) + int(before[1])
    assert pod["terminationGracePeriodSeconds"] > least


@every_gateway
def test_envoy_refuses_requests_before_it_is_killed_for_its_memory(
    manifests: Manifests,
) -> None:
    bootstrap = (ROOT / "envoy/envoy.yaml").read_text()
    heap = re.search(r"max_heap_size_bytes: (\d+)", bootstrap)
    limit = gateway_pod(manifests)["envoy"]["resources"]["limits"]["memory"]
    assert heap
    assert int(heap[1]) <= 0.7 * int(limit.removesuffix("Mi")) * 2**20


@pytest.mark.parametrize("manifests", GATEWAYS[1:], indirect=True)
def test_envoy_gets_the_files_of_envoy(manifests: Manifests) -> None:
    files = [f for f in (ROOT / "envoy").iterdir() if f.name != "kustomization.yaml"]
    data = named(manifests, "ConfigMap", "envoy")["data"]
    assert data == {file.name: file.read_text() for file in files}


@pytest.fixture(scope="session")
def with_tls(tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    """Render production with the component for TLS, as docs/kubernetes.md says."""
    checkout = tmp_path_factory.mktemp("tls")
    rendered("overlays/production", checkout)
    production = checkout / "deploy/kubernetes/overlays/production"
    file = production / "kustomization.yaml"
    commented = {"# - ../../components/tls": "- ../../components/tls"}
    file.write_text(moved(file.read_text(), commented))
    return kustomized(production)


@pytest.mark.kubectl
@pytest.mark.skipif(KUBECTL is None, reason="there is no kubectl")
def test_pods_have_the_pair_and_bear_tls_before_the_listener_has_it(
    with_tls: Manifests,
) -> None:
    for manifest in with_tls:
        if manifest["kind"] not in FOREIGN:
            kubernetes_validate.validate(manifest, KUBERNETES[0], strict=True)
    envoy = gateway_pod(with_tls)["envoy"]
    mounted = {"name": "tls", "mountPath": "/etc/envoy/tls", "readOnly": True}
    assert mounted in envoy["volumeMounts"]
    for probe in ("startupProbe", "readinessProbe"):
        assert envoy[probe]["tcpSocket"] == {"port": "http"}
        assert "httpGet" not in envoy[probe]
    pod = named(with_tls, "StatefulSet", "gateway")["spec"]["template"]["spec"]
    (pair,) = (v["secret"] for v in pod["volumes"] if v["name"] == "tls")
    assert pair["secretName"] == "gateway-tls"
    assert "optional" not in pair


def test_the_policy_for_servers_elsewhere_opens_what_it_names_and_no_more() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text()
    block = page.partition("## Servers elsewhere\n")[2].partition("```yaml\n")[2]
    policy = yaml.safe_load(block.partition("```")[0])
    kubernetes_validate.validate(policy, KUBERNETES[0], strict=True)
    gateway = named(written("base"), "StatefulSet", "gateway")["spec"]["selector"]
    assert policy["spec"]["podSelector"] == gateway
    (rule,) = policy["spec"]["egress"]
    assert all("ipBlock" in to for to in rule["to"])
    assert rule["ports"]


def test_our_gateway_is_let_out_to_authz_on_other_machines_and_in_there() -> None:
    manifests = written("examples/remote")
    remote = named(manifests, "Deployment", "authz-remote")["spec"]["selector"]
    gateway = named(written("base"), "StatefulSet", "gateway")["spec"]["selector"]
    out = named(manifests, "NetworkPolicy", "gateway-to-authz-remote")["spec"]
    inside = named(manifests, "NetworkPolicy", "authz-remote")["spec"]
    assert (out["podSelector"], inside["podSelector"]) == (gateway, remote)
    asks = {"ports": [{"port": 9001}]}
    assert out["egress"] == [{"to": [{"podSelector": remote}], **asks}]
    asking = inside["ingress"][0]
    assert {"podSelector": gateway} in asking["from"]
    assert asking["ports"] == asks["ports"]


def test_metrics_of_a_remote_authz_are_scraped_by_monitoring_alone() -> None:
    manifests = written("examples/remote")
    service = named(manifests, "Service", "authz-remote-metrics")
    monitor = named(written("components/monitoring"), "ServiceMonitor", "gateway")
    assert monitor["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    policy = named(manifests, "NetworkPolicy", "authz-remote")["spec"]
    ports = [{"port": port["port"]} for port in service["spec"]["ports"]]
    (rule,) = (rule for rule in policy["ingress"] if rule["ports"] == ports)
    labels = {"kubernetes.io/metadata.name": "monitoring"}
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": labels}}]


@of_production
def test_production_asks_nobody_for_keys_whom_it_cannot_verify(
    manifests: Manifests,
) -> None:
    asking = [c for c in containers(manifests) if "AUTHZ_DATABASE_URL" in str(c)]
    assert asking
    for container in asking:
        told = {variable["name"]: variable for variable in container["env"]}
        assert told["PGSSLMODE"]["value"] == "verify-full"
        root = told["PGSSLROOTCERT"]["value"]
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert root.rpartition("/")[0] in mounts
    assert "Secret" not in {manifest["kind"] for manifest in manifests}


@pytest.mark.parametrize("manifests", rendering(RENDERED[1:4]), indirect=True)
def test_production_reaches_the_stores_of_the_site_alone(manifests: Manifests) -> None:
    stores, _dns = named(manifests, "NetworkPolicy", "stores")["spec"]["egress"]
    assert stores.keys() == {"to", "ports"}
    assert all("ipBlock" in to for to in stores["to"])


@of_production
def test_our_image_comes_from_a_registry_that_can_be_set(manifests: Manifests) -> None:
    images = {container["image"] for container in containers(manifests)}
    assert {image for image in images if "authz" in image} == {
        f"registry.example.com/authz:{VERSION}"
    }


@pytest.mark.parametrize("manifests", GATEWAYS[2:], indirect=True)
def test_metrics_are_open_to_monitoring_alone(manifests: Manifests) -> None:
    (rule,) = named(manifests, "NetworkPolicy", "metrics")["spec"]["ingress"]
    (source,) = rule["from"]
    labels = source["namespaceSelector"]["matchLabels"]
    assert labels == {"kubernetes.io/metadata.name": "monitoring"}
    monitor = named(manifests, "ServiceMonitor", "gateway")["spec"]
    service = named(manifests, "Service", "gateway-metrics")
    assert monitor["selector"]["matchLabels"] == service["metadata"]["labels"]
    asked = [endpoint["port"] for endpoint in monitor["endpoints"]]
    assert asked == [port["name"] for port in service["spec"]["ports"]]
    assert rule["ports"] == [{"port": p["port"]} for p in service["spec"]["ports"]]


@pytest.mark.parametrize(
    ("file", "kind", "match"),
    [
        ("envoy-gateway.yaml", "HTTPRoute", "path"),
        ("istio.yaml", "VirtualService", "uri"),
    ],
)
def test_the_examples_forward_nothing_that_needs_our_listener(
    file: str, kind: str, match: str
) -> None:
    """Nobody there cuts lists of models, or counts what a stream has used."""
    example = yaml.safe_load_all((FOLDER / "examples" / file).read_text())
    (route,) = (manifest for manifest in example if manifest["kind"] == kind)
    (rule,) = route["spec"].get("rules") or route["spec"]["http"]
    for way in rule.get("matches") or rule["match"]:
        said = way[match]
        assert said.get("type", "Exact") == "Exact"
        endpoint = ENDPOINTS[said.get("value") or said["exact"]]
        assert endpoint.scope is Scope.INFERENCE


def test_the_examples_ask_before_they_forward() -> None:
    text = (FOLDER / "examples/envoy-gateway.yaml").read_text()
    (policy,) = (m for m in yaml.safe_load_all(text) if m["kind"] == "SecurityPolicy")
    asked = policy["spec"]["extAuth"]
    assert asked["failOpen"] is False
    assert asked["bodyToExtAuth"] == {"maxRequestBytes": 16777216}
    istio = (FOLDER / "examples/istio.yaml").read_text()
    assert "failOpen: false" in istio
    assert "allowPartialMessage: false" in istio
