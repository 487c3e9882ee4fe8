"""Opening the guarded models: settings become bundles that are verified, policies that hold, and engines that run.

Rule 1: nothing here changes what is at work. What is opened is complete, or an error says which table is to blame.
Rule 2: models that use one bundle alike share its engine and its queue; so do those before and after a reload.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from guard.answer_evidence import AnswerCalibration
from guard.bundle import Bundle
from guard.calibration import check_promise
from guard.config import ServeConfig
from guard.errors import ConfigError, UserError
from guard.manifest import ModelSpec
from guard.model_config import ModelConfig
from guard.policy import Policy
from guard.serve.agreement import UpstreamComparison
from guard.serve.device_thread import DeviceThread
from guard.serve.guarded_model import GuardedModel
from guard.serve.held_answers import held_answers
from guard.serve.inspector import Inspector
from guard.serve.loaded_bundle import BundleUse, LoadedBundle
from guard.serve.log import Log
from guard.serve.metrics import Metrics
from guard.serve.model_metrics import show_models
from guard.serve.models import Models, ModelTable, check_distinct
from guard.serve.query_watch import QueryWatch, check_watchable, unseen_requests
from guard.serve.readiness import Readiness
from guard.serve.sampling import Sampling, sample_key
from guard.signing import Trust, TrustedKey, open_trusted


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """A model's settings with its bundle, verified, and all that follows from the two."""

    config: ModelConfig
    bundle: Bundle
    spec: ModelSpec
    policy: Policy
    answers: AnswerCalibration | None
    warnings: tuple[str, ...]
    signer: TrustedKey | None = None  # the key that has signed the bundle, where keys are trusted
    unsigned: bool = False  # though keys are trusted

    @property
    def label(self) -> str:
        """The model's name in metrics, readiness and log."""
        return self.config.key or self.spec.name

    @staticmethod
    def of(config: ModelConfig, bundle: Bundle, *, allow_methods: Sequence[str]) -> OpenedModel:
        """Check that the bundle can keep what the settings promise. Raises UserError."""
        manifest = bundle.manifest
        policy = config.policy(reject_rate=manifest.reject_rate, flag_rate=manifest.flag_rate)
        rates = ("reject_rate", "flag_rate")
        warnings = [check_promise(getattr(policy, name), bundle.calibration.items, name=name) for name in rates]
        if policy.repair is not None:
            bundle.repair(policy.repair)
        check_watchable(config, bundle.manifest.model.input)
        answers = held_answers(config, bundle, allow_methods=allow_methods)
        return OpenedModel(config, bundle, served_spec(config, bundle), policy, answers, tuple(filter(None, warnings)))


def served_spec(config: ModelConfig, bundle: Bundle) -> ModelSpec:
    """The model as its server has it: a table's name counts, and its version, which a bundle of another contradicts.

    Raises:
        ConfigError: the table names another version than the one that the bundle was made for.
    """
    model = bundle.manifest.model
    if config.version and model.version and config.version != model.version:
        raise ConfigError(
            f"the table is for version {config.version}, and {bundle.path} was made for version {model.version} of "
            f"{model.name!r}; name the bundle of that version"
        )
    return replace(model, name=config.name or model.name, version=config.version or model.version)


def open_models(config: ServeConfig, trust: Trust) -> tuple[OpenedModel, ...]:
    """Open every bundle once, verified, with a signature as `trust` wants it, and check its models' settings.

    Raises:
        UserError: ConfigError, BundleError or PromiseError; the message begins with the table that is to blame.
    """
    bundles: dict[str, tuple[Bundle, TrustedKey | None]] = {}
    opened = []
    for model in config.model_configs():
        with blaming(model):
            bundle, signer = bundles.get(model.bundle) or open_trusted(model.bundle, trust)
            bundles[model.bundle] = bundle, signer
            found = OpenedModel.of(model, bundle, allow_methods=config.allow_methods)
            opened.append(replace(found, signer=signer, unsigned=signer is None and bool(trust.keys)))
    check_distinct((model.config.place, model.spec.name, model.spec.version) for model in opened)
    return tuple(opened)


@contextmanager
def blaming(model: ModelConfig) -> Iterator[None]:
    """Put the place of a model's table in front of a user's error that is raised within the block."""
    try:
        yield
    except UserError as error:
        if not model.place:
            raise
        raise type(error)(f"{model.place}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """The parts that all models share, and of which their own are built."""

    metrics: Metrics
    readiness: Readiness
    log: Log
    thread: DeviceThread

    def loaded_bundles(
        self, opened: Sequence[OpenedModel], config: ServeConfig, at_work: Collection[LoadedBundle] = ()
    ) -> dict[BundleUse, LoadedBundle]:
        """The bundle for each use that the models make of theirs: one that is at work already, or a new one."""
        found: dict[BundleUse, LoadedBundle] = {}
        for use in {use_of(model) for model in opened}:
            users = [model for model in opened if use_of(model) == use]
            whole = replace(
                use,
                repairs=frozenset(model.policy.repair for model in users if model.policy.repair is not None),
            )
            running = next((loaded for loaded in at_work if loaded.serves(whole)), None)
            found[use] = running or LoadedBundle.build(
                users[0].bundle,
                whole,
                config,
                label=",".join(model.label for model in users),
                metrics=self.metrics,
                thread=self.thread,
                log=self.log,
            )
        return found

    def table(
        self,
        opened: Sequence[OpenedModel],
        loaded: dict[BundleUse, LoadedBundle],
        config: ServeConfig,
        before: ModelTable | None = None,
    ) -> ModelTable:
        """The table of models, each with its bundle at work; a bundle that was so `before` has its agreement still."""
        key = sample_key(config.sample_key)
        old = {model.label: model for model in before.models} if before is not None else {}
        models = tuple(self.model(one, loaded[use_of(one)], old.get(one.label), key) for one in opened)
        return ModelTable(models, allowed=frozenset(config.allow_models))

    async def load(self, table: ModelTable) -> None:
        """Load the programs that are not at work yet, with a line in the log for each model whose requests are slow.

        Raises:
            BundleError, DeviceError: as `Engine.load`; the message begins with the table that is to blame.
        """
        for model in table.models:
            engine, batcher = model.loaded.engine, model.loaded.batcher
            with blaming(model.config):
                if not engine.ready:
                    await engine.load(largest=batcher.max_items)
            if warning := slowness(model):
                self.log.warning("slow programs", model=model.label, warning=warning)

    def model(self, opened: OpenedModel, loaded: LoadedBundle, before: GuardedModel | None, key: bytes) -> GuardedModel:
        config = opened.config
        comparison = UpstreamComparison(
            model=opened.spec,
            label=opened.label,
            metrics=self.metrics,
            readiness=self.readiness,
            log=self.log,
            most=config.max_disagreement,
            measured=opened.bundle.manifest.measured_disagreement,
        )
        if before is not None and before.bundle.digest == opened.bundle.digest:
            comparison.agreement, comparison.stale = before.comparison.agreement, before.comparison.stale
        return GuardedModel(
            config=config,
            spec=opened.spec,
            loaded=loaded,
            inspector=Inspector(
                policy=opened.policy,
                calibration=opened.bundle.calibration,
                batcher=loaded.batcher,
                engine=loaded.engine,
                breaker=loaded.breaker,
                answers=opened.answers,
            ),
            comparison=comparison,
            sampling=Sampling(config.sample, key),
            queries=QueryWatch.of(
                config,
                opened.spec.input,
                label=opened.label,
                metrics=self.metrics.queries,
                log=self.log,
                before=None if before is None else before.queries,
                typical_distance=opened.bundle.calibration.typical_distance,
            ),
        )


def use_of(model: OpenedModel) -> BundleUse:
    """The way in which a model uses its bundle."""
    config = model.config
    limits = (config.max_rows, config.max_queue_rows, config.breaker_failures, config.breaker_share)
    return BundleUse(model.bundle.digest, *limits)


def slowness(model: GuardedModel) -> str | None:
    """The warning of a model whose largest request takes longer than there is time for it; None where it fits."""
    items, limit_s, item_s = model.inspector.max_items, model.config.inspect_timeout_s, model.loaded.engine.item_s
    if (needed_s := items * item_s) <= limit_s:
        return None
    most = max(1, int(limit_s / item_s))
    return (
        f"a request of {items} items takes about {needed_s:.2g} s to inspect, and inspect_timeout_s = {limit_s:g}; "
        f"raise it, or let clients send at most {most} at once"
    )


@asynccontextmanager
async def at_work(config: ServeConfig, trust: Trust, workshop: Workshop) -> AsyncIterator[Models]:
    """Put models to work within the block, their programs not loaded yet; then those that are at work by then stop.

    Raises:
        UserError: as `open_models`.
    """
    models = begun(config, trust, workshop)  # and nothing here holds a table, which a reload replaces
    try:
        yield models
    finally:
        await models.close()


def begun(config: ServeConfig, trust: Trust, workshop: Workshop) -> Models:
    """Open what the settings name, and let its queues take requests."""
    opened = open_models(config, trust)
    table = workshop.table(opened, workshop.loaded_bundles(opened, config), config)
    show_models(workshop.metrics, None, table)
    told(opened, workshop.log)
    for loaded in table.loaded:
        loaded.batcher.start()
    return Models(table, workshop.readiness)


def told(opened: Sequence[OpenedModel], log: Log) -> None:
    """Write into the log which models are guarded, and how, and what their settings make risky."""
    for model in opened:
        settings = {name: getattr(model.config, name) for name in ("mode", "on_failure", "forward")}
        signed_by = None if model.signer is None else model.signer.id
        log.info(
            "guarding",
            model=model.label,
            bundle=model.config.bundle,
            digest=model.bundle.digest,
            signed_by=signed_by,
            **settings,
        )
        if model.bundle.beside:
            log.info("beside the bundle", model=model.label, ignored=model.bundle.beside)
        if model.unsigned:
            log.warning("bundle not signed", model=model.label, warning="require_signature = false lets it be used")
        for warning in model.warnings:
            log.warning("thin promise", model=model.label, warning=warning)
        if warning := unseen_requests(model.config):
            log.warning("queries unseen", model=model.label, warning=warning)
