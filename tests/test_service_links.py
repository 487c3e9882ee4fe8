"""Variables of the environment that Kubernetes makes of Services: they are no settings, and nothing else is excused."""

from __future__ import annotations

import pytest

from guard.config import ServeConfig, load_config, service_links
from guard.errors import ConfigError
from guard.service_links import is_service_link


def links(service: str, host: str, ports: dict[str, int]) -> dict[str, str]:
    """The variables that the kubelet makes of a Service with these named ports."""
    prefix = service.upper().replace("-", "_")
    shown = f"[{host}]" if ":" in host else host
    first = next(iter(ports.values()))
    found = {f"{prefix}_SERVICE_HOST": host, f"{prefix}_SERVICE_PORT": str(first)}
    found[f"{prefix}_PORT"] = f"tcp://{shown}:{first}"
    for name, port in ports.items():
        if name:
            found[f"{prefix}_SERVICE_PORT_{name.upper().replace('-', '_')}"] = str(port)
        found |= {
            f"{prefix}_PORT_{port}_TCP": f"tcp://{shown}:{port}",
            f"{prefix}_PORT_{port}_TCP_PROTO": "tcp",
            f"{prefix}_PORT_{port}_TCP_PORT": str(port),
            f"{prefix}_PORT_{port}_TCP_ADDR": host,
        }
    return found


@pytest.mark.parametrize("host", ["10.96.0.7", "fd00::7"])
@pytest.mark.parametrize("service", ["guard", "guard-metrics", "guard-2-x"])
def test_all_links_of_a_service_are_left_alone(service: str, host: str) -> None:
    environment = links(service, host, {"grpc-inference": 8081, "metrics": 8082})
    assert len(environment) == 13
    assert load_config(None, {**environment, "GUARD_MODE": "shadow"}, {}) == ServeConfig(mode="shadow")
    assert service_links({**environment, "GUARD_MODE": "shadow", "PATH": "/bin"}) == tuple(sorted(environment))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GUARD_PORT", "8081"),
        ("GUARD_PORT", "tcp://guard:8081"),
        ("GUARD_PORT", ""),
        ("GUARD_SERVICE_HOST", "guard"),
        ("GUARD_SERVICE_PORT", "http"),
        ("GUARD_METRICS_PORT", "0.0.0.0:8082"),
        ("GUARD_PORT_8081_TCP_PROTO", "icmp"),
        ("GUARD_SERVICE", "10.0.0.1"),
    ],
)
def test_what_only_looks_like_one_is_an_unknown_setting(variable: str, value: str) -> None:
    assert not is_service_link(variable, value)
    with pytest.raises(ConfigError, match=variable):
        load_config(None, {variable: value}, {})


def test_no_setting_can_be_taken_for_a_link() -> None:
    for name in ServeConfig.__dataclass_fields__:
        assert not any(
            is_service_link(f"GUARD_{name.upper()}", value) for value in ("tcp://10.0.0.1:1", "10.0.0.1", "1")
        )
