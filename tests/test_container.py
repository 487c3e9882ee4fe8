"""What a container leaves of the machine, read from made-up trees of control groups."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from guard import container

HOST_CPUS = 64
V1_UNLIMITED = 2**63 - 4096
GIB = 2**30

Files = Mapping[str, str]

V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
OTHER_MOUNTS = "23 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n30 23 0:27 / /proc rw - proc proc rw\n"
V1_MOUNTS = (
    "32 31 0:29 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "33 32 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:10 - cgroup cgroup rw,cpu,cpuacct\n"
    "34 32 0:31 / /sys/fs/cgroup/memory rw,relatime master:11 - cgroup cgroup rw,memory\n"
    "35 32 0:32 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n"
)
POD, OWN = "sys/fs/cgroup/kubepods/pod", "sys/fs/cgroup/kubepods/pod/guard"


def v2(group: str, files: Files, mount: str = V2_MOUNT) -> Files:
    return {"proc/self/cgroup": f"0::{group}\n", "proc/self/mountinfo": OTHER_MOUNTS + mount, **files}


def v1(group: str, files: Files, mounts: str = V1_MOUNTS) -> Files:
    lines = f"12:cpu,cpuacct:{group}\n9:memory:{group}\n1:name=systemd:/elsewhere\n"
    return {"proc/self/cgroup": lines, "proc/self/mountinfo": OTHER_MOUNTS + mounts, **files}


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(HOST_CPUS)))


def laid_out(root: Path, files: Files) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


V1_CPU, V1_MEMORY = "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/memory"
QUOTA, PERIOD, LIMIT = "cpu.cfs_quota_us", "cpu.cfs_period_us", "memory.limit_in_bytes"

TREES: dict[str, tuple[Files, int, int | None]] = {
    "v2": (
        v2("/kubepods/pod/guard", {f"{OWN}/cpu.max": "200000 100000\n", f"{OWN}/memory.max": f"{GIB}\n"}),
        *(2, GIB),
    ),
    "v2, no limits": (
        v2("/kubepods/pod/guard", {f"{OWN}/cpu.max": "max 100000\n", f"{OWN}/memory.max": "max\n"}),
        *(HOST_CPUS, None),
    ),
    "v2, another period": (v2("/kubepods/pod/guard", {f"{OWN}/cpu.max": "30000 10000\n"}), 3, None),
    "v2, no period": (v2("/kubepods/pod/guard", {f"{OWN}/cpu.max": "400000\n"}), 4, None),
    "v2, rounded down": (v2("/kubepods/pod/guard", {f"{OWN}/cpu.max": "290000 100000\n"}), 2, None),
    "v2, less than one": (v2("/kubepods/pod/guard", {f"{OWN}/cpu.max": "25000 100000\n"}), 1, None),
    "v2, more than the host": (v2("/kubepods/pod/guard", {f"{OWN}/cpu.max": "9900000 100000\n"}), HOST_CPUS, None),
    "v2, the pod is tighter": (
        v2(
            "/kubepods/pod/guard",
            {
                f"{OWN}/cpu.max": "800000 100000\n",
                f"{POD}/cpu.max": "250000 100000\n",
                f"{OWN}/memory.max": f"{4 * GIB}\n",
                f"{POD}/memory.max": f"{3 * GIB}\n",
            },
        ),
        *(2, 3 * GIB),
    ),
    "v2, only the pod": (v2("/kubepods/pod/guard", {f"{POD}/cpu.max": "500000 100000\n"}), 5, None),
    "v2, a namespace of its own": (v2("/", {"sys/fs/cgroup/cpu.max": "300000 100000\n"}), 3, None),
    "v2, the host's name for it": (
        v2("/kubepods/pod/guard", {"sys/fs/cgroup/cpu.max": "300000 100000", "sys/fs/cgroup/memory.max": f"{GIB}"}),
        *(3, GIB),
    ),
    "v2, the mount shows a part": (
        v2(
            "/kubepods/pod/guard",
            {"sys/fs/cgroup/guard/cpu.max": "100000 100000\n", "sys/fs/cgroup/cpu.max": "700000 100000\n"},
            V2_MOUNT.replace(" / /sys", " /kubepods/pod /sys"),
        ),
        *(1, None),
    ),
    "v2, another's folder is mounted as well": (
        v2(
            "/kubepods/pod/guard",
            {"other/cpu.max": "100000 100000\n", f"{OWN}/cpu.max": "600000 100000\n"},
            V2_MOUNT.replace(" / /sys/fs/cgroup", " /kubepods/neighbour /other") + V2_MOUNT,
        ),
        *(6, None),
    ),
    "v2, a group above the namespace": (
        v2("/../neighbour", {"sys/fs/neighbour/cpu.max": "100000 100000", "sys/fs/cgroup/cpu.max": "700000 100000"}),
        *(7, None),
    ),
    "v2, mounted at an odd place": (
        v2(
            "/pod:1/a group",
            {"odd place/pod:1/a group/cpu.max": "200000 100000\n"},
            V2_MOUNT.replace("/sys/fs/cgroup", "/odd\\040place"),
        ),
        *(2, None),
    ),
    "v1": (
        v1(
            "/docker/guard",
            {
                f"{V1_CPU}/docker/guard/{QUOTA}": "300000\n",
                f"{V1_CPU}/docker/guard/{PERIOD}": "100000\n",
                f"{V1_MEMORY}/docker/guard/{LIMIT}": f"{GIB}\n",
            },
        ),
        *(3, GIB),
    ),
    "v1, no limits": (
        v1(
            "/docker/guard",
            {
                f"{V1_CPU}/docker/guard/{QUOTA}": "-1\n",
                f"{V1_CPU}/docker/guard/{PERIOD}": "100000\n",
                f"{V1_MEMORY}/docker/guard/{LIMIT}": f"{V1_UNLIMITED}\n",
                f"{V1_MEMORY}/{LIMIT}": f"{2**63 - 65536}\n",
            },
        ),
        *(HOST_CPUS, None),
    ),
    "v1, the parent is tighter": (
        v1(
            "/docker/guard",
            {
                f"{V1_CPU}/docker/guard/{QUOTA}": "-1\n",
                f"{V1_CPU}/docker/{QUOTA}": "50000\n",
                f"{V1_CPU}/docker/{PERIOD}": "10000\n",
                f"{V1_MEMORY}/docker/guard/{LIMIT}": f"{V1_UNLIMITED}\n",
                f"{V1_MEMORY}/docker/{LIMIT}": f"{2 * GIB}\n",
            },
        ),
        *(5, 2 * GIB),
    ),
    "v1, the host's name for it": (
        v1("/docker/guard", {f"{V1_CPU}/{QUOTA}": "200000", f"{V1_CPU}/{PERIOD}": "100000"}),
        *(2, None),
    ),
    "v1, the mount shows the container": (
        v1(
            "/docker/guard",
            {f"{V1_CPU}/{QUOTA}": "200000", f"{V1_CPU}/{PERIOD}": "50000", f"{V1_MEMORY}/{LIMIT}": f"{GIB}"},
            V1_MOUNTS.replace(" / /sys/fs/cgroup/", " /docker/guard /sys/fs/cgroup/"),
        ),
        *(4, GIB),
    ),
    "hybrid": (
        {
            "proc/self/cgroup": "4:memory:/guard\n1:cpu:/guard\n0::/guard\n",
            "proc/self/mountinfo": V1_MOUNTS.replace("cpu,cpuacct", "cpu")
            + V2_MOUNT.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
            f"sys/fs/cgroup/cpu/guard/{QUOTA}": "150000\n",
            f"sys/fs/cgroup/cpu/guard/{PERIOD}": "100000\n",
            "sys/fs/cgroup/unified/guard/memory.max": f"{GIB}\n",
        },
        *(1, GIB),
    ),
    "nothing": ({}, HOST_CPUS, None),
    "no mounts": ({"proc/self/cgroup": "0::/kubepods\n"}, HOST_CPUS, None),
    "no groups": ({"proc/self/mountinfo": V2_MOUNT, f"{OWN}/cpu.max": "100000 100000"}, HOST_CPUS, None),
    "garbage": (
        {
            "proc/self/cgroup": "\n:\n::\n0\n0::\nnine:cpu:/x\n0::/a\x00b\n0::relative\n",
            "proc/self/mountinfo": "\n - \n1 2 3 - cgroup2\n - cgroup2 x y\n" + V2_MOUNT,
            "sys/fs/cgroup/cpu.max": "-5 0 much\n",
            "sys/fs/cgroup/memory.max": "1e9\n",
        },
        *(HOST_CPUS, None),
    ),
    "garbage numbers": (
        v2("/", {"sys/fs/cgroup/cpu.max": f"{'9' * 5000} 1\n", "sys/fs/cgroup/memory.max": "٣\n"}),
        *(HOST_CPUS, None),
    ),
    "zeros": (v2("/", {"sys/fs/cgroup/cpu.max": "0 0\n", "sys/fs/cgroup/memory.max": "0\n"}), HOST_CPUS, None),
    "empty": (v2("/", {"sys/fs/cgroup/cpu.max": "", "sys/fs/cgroup/memory.max": ""}), HOST_CPUS, None),
}


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_the_smallest_limit_holds(tree: str, tmp_path: Path) -> None:
    files, cpus, memory_bytes = TREES[tree]
    root = laid_out(tmp_path, files)
    assert container.cpus(root) == cpus
    assert container.memory_bytes(root) == memory_bytes


def test_the_affinity_may_be_tighter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = laid_out(tmp_path, v2("/", {"sys/fs/cgroup/cpu.max": "300000 100000\n"}))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 7})
    assert container.cpus(root) == 2


def test_a_system_without_affinities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert container.cpus(tmp_path) == 12


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    root = laid_out(tmp_path, v2("/group", {}))
    (root / "sys/fs/cgroup/group/cpu.max").mkdir(parents=True)
    (root / "sys/fs/cgroup/group/memory.max").write_bytes(b"\xff\xfe\x00")
    (root / "sys/fs/cgroup/cpu.max").symlink_to("cpu.max")
    assert container.cpus(root) == HOST_CPUS
    assert container.memory_bytes(root) is None


def test_this_machine() -> None:
    assert 1 <= container.cpus() <= HOST_CPUS
    assert (container.memory_bytes() or 1) > 0
