"""The manifests of deploy/kubernetes, as their files and as kubectl renders them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy/kubernetes"
KUBECTL = shutil.which("kubectl")

Manifest = dict[str, Any]


def written(part: str, _checkout: Path | None = None) -> list[Manifest]:
    """Read the files that the kustomization of a part lists, with its versions."""
    folder = FOLDER / part
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    files = [folder / name for name in kustomization["resources"]]
    manifests = [
        manifest
        for file in files
        if file.is_file()
        for manifest in yaml.safe_load_all(file.read_text())
    ]
    tags = {image["name"]: image["newTag"] for image in kustomization.get("images", ())}
    for container in containers(manifests):
        if container["image"] in tags:
            container["image"] += f":{tags[container['image']]}"
    return manifests


def rendered(part: str, checkout: Path) -> list[Manifest]:
    """Render a part by kubectl, from a copy of what it needs."""
    for folder in ("deploy/kubernetes", "envoy"):
        shutil.copytree(ROOT / folder, checkout / folder, dirs_exist_ok=True)
    copy = checkout / "deploy/kubernetes"
    subprocess.run([copy / "overlays/dev/secrets.sh"], check=True)
    return kustomized(copy / part)


def kustomized(folder: Path) -> list[Manifest]:
    """Render what a folder has, by kubectl."""
    assert KUBECTL is not None
    output = subprocess.run(
        [KUBECTL, "kustomize", folder], check=True, capture_output=True
    )
    return list(yaml.safe_load_all(output.stdout))


def pods(manifests: Sequence[Manifest]) -> Iterator[Manifest]:
    """Yield what each workload says of its pods."""
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            yield manifest["spec"]
        elif manifest["kind"] in {"StatefulSet", "Deployment", "Job"}:
            yield manifest["spec"]["template"]["spec"]


def containers_of(pod: Manifest) -> list[Manifest]:
    """Return all containers of a pod, those first that start first."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


def containers(manifests: Sequence[Manifest]) -> Iterator[Manifest]:
    """Yield all containers of all pods."""
    for pod in pods(manifests):
        yield from containers_of(pod)


def named(manifests: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """Return the one manifest of that kind and name."""
    (found,) = (
        manifest
        for manifest in manifests
        if (manifest["kind"], manifest["metadata"]["name"]) == (kind, name)
    )
    return found


def gateway_pod(manifests: Sequence[Manifest]) -> dict[str, Manifest]:
    """Return the containers of the gateway by their names."""
    pod = named(manifests, "StatefulSet", "gateway")["spec"]["template"]["spec"]
    return {container["name"]: container for container in containers_of(pod)}


def moved(text: str, places: dict[str, str]) -> str:
    """Put other places into a command or a file; each must be there to be moved."""
    for place, other in places.items():
        assert place in text, place
        text = text.replace(place, other)
    return text
