"""The checks of settings as a whole, at the start and at each reload: what is missing, and what excludes what."""

from __future__ import annotations

from guard.config import ServeConfig
from guard.errors import ConfigError
from guard.serve.admin_access import check_admin
from guard.serve.envoy.authorization import check_settings
from guard.serve.own_ports import clashes


def check_complete(config: ServeConfig) -> None:
    """Raise ConfigError where a setting is missing, or tells strangers too much."""
    reached = config.upstream or config.rest_upstream
    if not reached or not (config.bundle or config.models or config.mode == "off"):
        name = "bundle" if reached else "upstream"
        raise ConfigError(f"{name} is not set; `guard serve --bundle DIRECTORY --upstream HOST:PORT`")
    check_admin(config)
    for name in ("audit_inputs", "sample_share"):
        sent = name == "audit_inputs" and config.events_sink is not None
        if getattr(config, name) and config.audit_dir is None and not sent:
            raise ConfigError(
                f"{name} = {getattr(config, name)!r}, and audit_dir is not set; name the directory that is to hold it"
            )
    if config.rest_upstream and not config.rest_listen:
        raise ConfigError(
            f"rest_upstream = {config.rest_upstream!r}, and rest_listen is not set, where clients call (HOST:PORT); "
            "set it, or leave out rest_upstream"
        )
    for model in config.model_configs():
        if model.query_memory == "reject" and config.principal_from == "none":
            raise ConfigError(
                f'{model.place or "guard.toml"}: query_memory = "reject" needs principal_from: without it all clients '
                'are one principal, and one would be refused for what another sent; name a source, or set "watch"'
            )
    if config.authz_listen:
        check_settings(config)
    for said in clashes(config):
        raise ConfigError(said)
