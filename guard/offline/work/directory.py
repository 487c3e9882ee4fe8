"""Work directory of a bundle: everything slow to make that lies in `OUT.work`, and where.

Rule 1: no other file says where something lies in a work directory.
Rule 2: a directory that another layout was written in is refused, never read by halves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from guard.errors import BundleError
from guard.offline.work.files import read_json, write_json
from guard.offline.work.store import ResultStore

LAYOUT_VERSION = 2  # raised when a thing of the work directory moves
SUFFIX = ".work"


@dataclass(frozen=True)
class WorkDirectory:
    """Work directory `OUT.work`: its files and folders by what they are for."""

    path: Path

    @staticmethod
    def beside(bundle: Path) -> WorkDirectory:
        """Return the work directory of the bundle at this path, whether either exists or not."""
        return WorkDirectory(bundle.with_name(bundle.name + SUFFIX))

    def begin(self) -> None:
        """Create the directory unless it exists. Raises BundleError where another layout lies there."""
        if self.path.exists() and any(entry != self.lock for entry in self.path.iterdir()):
            self.check()
        write_json(self.layout, {"layout": LAYOUT_VERSION})

    def check(self) -> None:
        """Check the layout of the directory. Raises BundleError where it is another one."""
        content = read_json(self.layout)
        found = content.get("layout") if isinstance(content, dict) else None
        if found != LAYOUT_VERSION:
            raise BundleError(
                f"{self.path} was written by another version of the guard (layout {found or 1}; this one has "
                f"{LAYOUT_VERSION}); remove it and train the bundle again"
            )

    @property
    def layout(self) -> Path:
        """File that states the directory's layout."""
        return self.path / "layout.json"

    @property
    def lock(self) -> Path:
        """File that is locked while a run writes into the directory."""
        return self.path / "lock"

    @property
    def job(self) -> Path:
        """File that states what `guard train` was asked for."""
        return self.path / "job.json"

    @property
    def reading(self) -> Path:
        """Folder with what the first reading found of items that do not fit into memory."""
        return self.path / "reading"

    @property
    def splits(self) -> Path:
        """File with the split of each item, by its content hash."""
        return self.path / "splits.json"

    @property
    def plan(self) -> Path:
        """File with the plan: how many items each attack is tried on."""
        return self.path / "plan.json"

    @property
    def seconds(self) -> Path:
        """File with the seconds that parts of the training took."""
        return self.path / "seconds.json"

    def head(self, detector: str) -> Path:
        """Return the file with a fitted detector's numbers."""
        return self.path / "heads" / f"{detector}.npz"

    def second(self, key: str) -> Path:
        """Return the file with a second network that is being trained, as it was after its last epoch."""
        return self.path / "second" / f"{key[:24]}.npz"

    def second_weights(self, digest: str) -> Path:
        """Return the file with the weights of a second network that was trained."""
        return self.path / "second" / f"weights-{digest[:24]}.npz"

    @property
    def seconds_asked(self) -> Path:
        """File that lists the second networks that a bundle's detectors ask."""
        return self.path / "second" / "networks.json"

    @property
    def lessons(self) -> Path:
        """File with the content hashes of what a second network learned from or was judged on."""
        return self.path / "second" / "lessons.npz"

    def model(self, key: str) -> Path:
        """Return the folder of the compiled model that attacks run in ONNX Runtime."""
        return self.path / "model" / key

    @property
    def student(self) -> Path:
        """Folder of a closed model's answers, and of the student distilled from them."""
        return self.path / "student"

    @property
    def crafted(self) -> ResultStore:
        """Store of attacked items, shard by shard."""
        return ResultStore(self.path / "crafted")

    @property
    def demo(self) -> ResultStore:
        """Store of the attacked items that `guard demo` sends."""
        return ResultStore(self.path / "demo")

    @property
    def suite(self) -> ResultStore:
        """Store of the attacked items of suites."""
        return ResultStore(self.path / "suite")

    @property
    def adaptive(self) -> ResultStore:
        """Store of the runs of the adaptive attack."""
        return ResultStore(self.path / "adaptive")

    @property
    def choices(self) -> ResultStore:
        """Store of the sizes that were chosen by measured speed."""
        return ResultStore(self.path / "choices")

    def without(self, family: str) -> Path:
        """Return the path of the bundle that was fitted without one family of attacks."""
        return self.path / f"without-{family}"

    def made_for(self, family: str) -> Path:
        """Return the file that states what that bundle was made for; it is written when the bundle is whole."""
        return self.path / f"without-{family}.json"
