"""What trains a guard in a cluster: a Job that is valid Kubernetes, and a RayJob by assertions of our own.

No KubeRay is here, and its types are in no package: that a RayJob is right rests on these assertions alone.
"""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from guard import cli
from guard.errors import UserError, leaves
from tests import lock
from tests.deploy.kubernetes_versions import schema_faults, versions
from tests.deploy.rendered import Object, Pod, kustomize, pods, read

RETRIED = {"NotReadyError", "PortError", "GateError", "ConformanceError"}  # that a later try may mend, or none of these
OVERLAY = """apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [training/{base}]
components: [{components}]
images: [{{name: inference-guard, newName: registry.example/inference-guard, newTag: train}}]
"""


def render(root: Path, programs: Path, folder: Path, base: str, components: str = "") -> str:
    """What an overlay beside a copy of deploy/training renders."""
    (folder / "training").symlink_to(root / "deploy/training")
    (folder / "kustomization.yaml").write_text(OVERLAY.format(base=base, components=components), encoding="utf-8")
    command = [programs / "kubectl", "kustomize", folder, "--load-restrictor=LoadRestrictionsNone"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def rendered(root: Path, side: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Text by what is deployed."""
    folder, programs = tmp_path_factory.mktemp, side("kubectl")
    return {
        "job": kustomize(root / "deploy/training/job", programs),
        "gpu": render(root, programs, folder("gpu"), "job", "training/gpu"),
        "ray": render(root, programs, folder("ray"), "rayjob"),
    }


@pytest.fixture(scope="module")
def objects(rendered: dict[str, str], side: Callable[[str], Path]) -> dict[str, list[Object]]:
    return {name: read(text, side("kubectl")) for name, text in rendered.items()}


def of_kind(found: list[Object], kind: str) -> Any:
    (only,) = [one for one in found if one["kind"] == kind]
    return only


def test_what_kubernetes_knows_is_valid(objects: dict[str, list[Object]], side: Callable[[str], Path]) -> None:
    wrong = copy.deepcopy(objects["job"])
    of_kind(wrong, "Job")["spec"]["backofLimit"] = 3
    cases = {name: (found, versions("1.29")) for name, found in {**objects, "wrong": wrong}.items()}
    faults = schema_faults(cases, side("kubectl"))
    assert {case: found for case, found in faults.items() if found and case[0] != "wrong"} == {}
    assert all(found for case, found in faults.items() if case[0] == "wrong")


def words_of(container: Object) -> list[list[str]]:
    """The commands of the guard in a container, whatever shell is around them."""
    script = [*(container.get("command") or ()), *(container.get("args") or ())]
    if script[:1] == ["sh"]:
        script = [*shlex.split(script[2].replace('"$@"', " ")), *script[4:]]
    return list(commands(script))


def commands(words: list[str]) -> Iterator[list[str]]:
    """Each `guard COMMAND …` of a line of a shell."""
    found: list[str] | None = None
    for word in words:
        if word in ("guard", "||", ";") or word.endswith(";"):
            if found:
                yield [*found, word.rstrip(";")] if word.endswith(";") and len(word) > 1 else found
            found = [] if word == "guard" else None
        elif found is not None:
            found.append(word)
    if found:
        yield found


def known_flags(name: str) -> set[str]:
    """The flags that a command of the guard has."""
    command = typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    return {flag for parameter in command.params for flag in parameter.opts}


def flag_faults(called: list[list[str]]) -> list[str]:
    """Flags that the guard does not have, in its own commands."""
    return [
        f"guard {name} has no {flag}"
        for name, *words in called
        for flag in (word.partition("=")[0] for word in words if word.startswith("--"))
        if flag not in known_flags(name)
    ]


def ray_commands(job: Object) -> list[list[str]]:
    """The commands of the guard that a RayJob's entry point calls."""
    return list(commands(shlex.split(shlex.split(job["spec"]["entrypoint"])[-1].replace(";", " ; "))))


def test_the_commands_are_the_guards(objects: dict[str, list[Object]]) -> None:
    template = of_kind(objects["job"], "Job")["spec"]["template"]["spec"]
    called = [one for container in template["initContainers"] + template["containers"] for one in words_of(container)]
    assert [name for name, *_ in called] == ["train", "pack"]
    by_ray = ray_commands(of_kind(objects["ray"], "RayJob"))
    assert [name for name, *_ in by_ray] == ["train", "pack"]
    assert "--ray=auto" in by_ray[0]
    assert flag_faults([*called, *by_ray]) == []
    assert flag_faults([["train", "--modle=x"]]) == ["guard train has no --modle"]


def test_what_is_trained_is_what_is_pushed(objects: dict[str, list[Object]]) -> None:
    template = of_kind(objects["job"], "Job")["spec"]["template"]["spec"]
    (train,), (push,) = map(words_of, (template["initContainers"][0], template["containers"][0]))
    for training, pushing in ((train, push), tuple(ray_commands(of_kind(objects["ray"], "RayJob")))):
        (out,) = [word.partition("=")[2] for word in training if word.startswith("--out=")]
        assert out in pushing
        assert [word for word in pushing if word.startswith("--out=oci://")]


def test_a_training_goes_on_where_it_was(objects: dict[str, list[Object]]) -> None:
    """Bundle and work directory are on a claim, and a bundle that is there already is not asked for again."""
    job = of_kind(objects["job"], "Job")["spec"]
    (train,) = job["template"]["spec"]["initContainers"]
    assert "test -e /training/bundle/manifest.json ||" in train["command"][2]
    assert "test -e /training/bundle/manifest.json ||" in of_kind(objects["ray"], "RayJob")["spec"]["entrypoint"]
    for name in ("job", "ray"):
        (pod, *_) = pods(objects[name])
        claims = {one["name"]: one.get("persistentVolumeClaim", {}) for one in pod.spec["volumes"]}
        assert claims["work"] == {"claimName": of_kind(objects[name], "PersistentVolumeClaim")["metadata"]["name"]}
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # which the policy of failures needs


def test_what_no_later_try_mends_is_not_tried_again(objects: dict[str, list[Object]]) -> None:
    rules = of_kind(objects["job"], "Job")["spec"]["podFailurePolicy"]["rules"]
    (codes,) = [rule["onExitCodes"]["values"] for rule in rules if rule["action"] == "FailJob"]
    assert codes == sorted(codes)
    assert set(codes) == {leaf.exit_code for leaf in leaves(UserError) if leaf.__name__ not in RETRIED}
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob"]


def test_a_gpu_is_asked_for_where_it_is_wanted(objects: dict[str, list[Object]]) -> None:
    def resources(name: str) -> list[Any]:
        template = of_kind(objects[name], "Job")["spec"]["template"]["spec"]
        return [container["resources"] for container in template["initContainers"] + template["containers"]]

    plain, (train, push) = resources("job"), resources("gpu")
    assert train["limits"] == {**plain[0]["limits"], "nvidia.com/gpu": "1"}
    assert train["requests"] == {**plain[0]["requests"], "nvidia.com/gpu": "1"}
    assert push == plain[1]
    (pod,) = pods(objects["gpu"])
    assert pod.spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


@pytest.mark.parametrize("name", ["job", "gpu", "ray"])
def test_pods_are_locked_down_and_their_volumes_are_there(objects: dict[str, list[Object]], name: str) -> None:
    found = list(pods(objects[name]))
    assert len(found) == (2 if name == "ray" else 1)
    for pod in found:
        assert pod.spec["securityContext"]["runAsNonRoot"] is True
        assert pod.spec["securityContext"]["fsGroup"] == 65532  # whom a claim's files belong to
        assert pod.spec["automountServiceAccountToken"] is False
        assert pod.spec["enableServiceLinks"] is False
        for container in pod.before + pod.beside:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"HOME": "/tmp"}.items() <= {one["name"]: one.get("value") for one in container["env"]}.items()
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]
            assert container["resources"]["limits"]["memory"]
        assert mount_faults(pod) == []


def mount_faults(pod: Pod) -> list[str]:
    """Mounts without a volume, and volumes that nobody mounts."""
    volumes = {one["name"] for one in pod.spec["volumes"]}
    mounted = {mount["name"] for one in pod.before + pod.beside for mount in one["volumeMounts"]}
    return [f"{name}: mounted or declared alone" for name in sorted(volumes ^ mounted)]


def test_a_missing_volume_is_found(objects: dict[str, list[Object]]) -> None:
    (pod,) = pods(copy.deepcopy(objects["job"]))
    pod.spec["volumes"].pop()
    assert mount_faults(pod) == ["registry: mounted or declared alone"]


def ray_faults(job: Object, locked: str) -> list[str]:
    """What is wrong with a RayJob, as far as KubeRay's documents say what is right."""
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    head, groups = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    templates = [head["template"]["spec"], *(group["template"]["spec"] for group in groups)]
    images = {container["image"] for one in templates for container in one["containers"]}
    faults = [] if job["apiVersion"] == "ray.io/v1" else [f"apiVersion {job['apiVersion']}"]
    if cluster["rayVersion"] != locked:
        faults.append(f"rayVersion {cluster['rayVersion']}, and {locked} is locked: driver and workers must agree")
    if len(images) != 1:
        faults.append(f"several images, {sorted(images)}: driver and workers must compute the same")
    if head["rayStartParams"].get("num-cpus") != "0":
        faults.append("tasks may run on the head, and take it down with them")
    for params in (head["rayStartParams"], *(group["rayStartParams"] for group in groups)):
        faults += [
            f"rayStartParams {name}: {value!r} is no text" for name, value in params.items() if type(value) is not str
        ]
    for group in groups:
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            faults.append(f"{group['groupName']}: {group['replicas']} replicas are out of bounds")
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", group["groupName"]):
            faults.append(f"{group['groupName']!r} is no name of a group")
        volumes = group["template"]["spec"]["volumes"]
        faults += [
            f"a worker mounts {one['name']}: results travel through the object store"
            for one in volumes
            if "emptyDir" not in one
        ]
    if not spec.get("shutdownAfterJobFinishes"):
        faults.append("the cluster stays when the job has ended")
    return faults


@pytest.fixture(scope="module")
def locked(root: Path) -> str:
    """The version of Ray that trainings are tested with."""
    return re.findall(r"^ray==(.+)$", (root / "tests/side/ray.txt").read_text("utf-8"), re.MULTILINE)[0]


def test_the_ray_job_is_as_kuberay_wants_it(objects: dict[str, list[Object]], locked: str) -> None:
    job = of_kind(objects["ray"], "RayJob")
    assert ray_faults(job, locked) == []
    images = [container["image"] for pod in pods(objects["ray"]) for container in pod.beside]
    assert images == ["registry.example/inference-guard:train"] * 2  # which an overlay named once


def test_the_page_says_whether_the_image_has_what_kuberay_needs(root: Path, objects: dict[str, list[Object]]) -> None:
    """Ray's dashboard, by which a RayJob is submitted, takes packages that the wheel of Ray alone does not bring."""
    held = dict(lock.pins((root / "deploy/train.txt").read_text("utf-8")))
    readme = (root / "deploy/README.md").read_text("utf-8")
    lacking = {"aiohttp", "aiohttp-cors", "colorful", "opencensus", "py-spy", "smart-open"} - set(held)
    assert ("`ray[default]`, which `deploy/train.txt` does not lock yet" in readme) == bool(lacking)
    assert "backoffLimit" in of_kind(objects["ray"], "RayJob")["spec"]
    assert "no operator has run it" in readme


PLANTED = {
    "rayVersion 2.9.0": ("rayClusterSpec rayVersion", "2.9.0"),
    "several images": ("rayClusterSpec workerGroupSpecs 0 template spec containers 0 image", "other"),
    "tasks may run on the head": ("rayClusterSpec headGroupSpec rayStartParams num-cpus", "2"),
    "num-cpus: 0 is no text": ("rayClusterSpec headGroupSpec rayStartParams num-cpus", 0),
    "out of bounds": ("rayClusterSpec workerGroupSpecs 0 replicas", 99),
    "no name of a group": ("rayClusterSpec workerGroupSpecs 0 groupName", "Workers!"),
    "a worker mounts work": (
        "rayClusterSpec workerGroupSpecs 0 template spec volumes 0",
        {"name": "work", "persistentVolumeClaim": {"claimName": "guard-work"}},
    ),
    "the cluster stays": ("shutdownAfterJobFinishes", False),
}


@pytest.mark.parametrize("words", PLANTED)
def test_a_planted_fault_is_found(objects: dict[str, list[Object]], locked: str, words: str) -> None:
    path, value = PLANTED[words]
    job = copy.deepcopy(of_kind(objects["ray"], "RayJob"))
    *parents, last = (int(key) if key.isdecimal() else key for key in path.split())
    node: Any = job["spec"]
    for key in parents:
        node = node[key]
    node[last] = value
    assert [one for one in ray_faults(job, locked) if words in one]
