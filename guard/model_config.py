"""The settings of one guarded model: its table `[models.NAME]` in guard.toml, or the top-level settings alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from guard.errors import ConfigError
from guard.policy import Forward, Mode, OnFailure, Policy, QueryMemoryUse, Rows, Shadow


@dataclass(frozen=True)
class ModelConfig:
    """The settings of one model; what its table leaves out is as the top-level setting of the same name."""

    bundle: str  # directory of the bundle
    key: str = ""  # of its table: NAME or NAME:VERSION; empty: the name and version that the bundle was made for
    place: str = field(default="", compare=False)  # of the table, for errors: guard.toml: models.NAME
    mode: Mode = "enforce"
    on_failure: OnFailure = "closed"
    sample: float = 1.0
    shadow: Shadow = "inline"
    reject_rate: float | None = None  # None: the bundle's
    flag_rate: float | None = None
    rows: Rows = "any"
    forward: Forward = "after"
    repair: str | None = None
    tell_flags: bool = False
    query_memory: QueryMemoryUse = "off"
    query_streams: bool = True
    inspect_timeout_s: float = 5.0
    max_disagreement: float | None = None
    max_rows: int = 64
    max_queue_rows: int = 1024
    breaker_failures: int | None = 5
    breaker_share: float = 0.5
    breaker_readiness: bool = True

    @property
    def name(self) -> str:
        """The name in the table's key; empty where there is no table."""
        return self.key.partition(":")[0]

    @property
    def version(self) -> str:
        """The version in the table's key; empty where it has none."""
        return self.key.partition(":")[2]

    def policy(self, *, reject_rate: float, flag_rate: float) -> Policy:
        """The operator's policy; the arguments are the bundle's rates, used where no rate is set here."""
        policy = Policy(
            reject_rate=reject_rate if self.reject_rate is None else self.reject_rate,
            flag_rate=flag_rate if self.flag_rate is None else self.flag_rate,
            mode=self.mode,
            on_failure=self.on_failure,
            rows=self.rows,
            repair=self.repair,
        )
        if policy.flag_rate < policy.reject_rate:
            raise ConfigError(
                f"flag_rate = {policy.flag_rate:g} is below reject_rate = {policy.reject_rate:g}; "
                "every rejected item counts as flagged, so it must be at least as large"
            )
        return policy
