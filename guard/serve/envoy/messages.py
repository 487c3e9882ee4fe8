"""The messages of Envoy's external authorization, from the package xds-protos of the extra [envoy].

They are generated elsewhere and not copied here; who does not use this door need not install them.
"""

from __future__ import annotations

from typing import Any

from guard.errors import ConfigError

SERVICE = "envoy.service.auth.v3.Authorization"


def authorization_messages() -> Any:
    """Import the module of CheckRequest and CheckResponse. Raises ConfigError where it is not installed."""
    try:
        from envoy.service.auth.v3 import external_auth_pb2
    except ImportError as error:
        raise ConfigError(
            "authz_listen is set, but the messages of Envoy's ext_authz are not installed; "
            "install inference-guard[envoy] (the package xds-protos)"
        ) from error
    return external_auth_pb2
