"""What `docker login` leaves, in each of its forms: taken, or said why not. No registry and no ORAS is needed here."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from guard.errors import ConfigError
from guard.oci import credentials
from guard.oci.credentials import Login, login_for
from guard.oci.registry import Reference, how_to_log_in, opened

HOST = "registry.example:5000"
AUTH = base64.b64encode(b"user:pass:word").decode()
OURS, TOKEN = Login("user", "pass:word"), "identity token"
HELPER = """#!/bin/sh
read key
case "$1 $key" in
"get registry.example:5000") echo '{"ServerURL": "x", "Username": "user", "Secret": "pass:word"}' ;;
"get https://index.hub.example/v1/") echo '{"Username": "hub", "Secret": "word"}' ;;
"get token.example") echo '{"Username": "<token>", "Secret": "word"}' ;;
"get broken.example") echo 'no JSON' ;;
"get denied.example") echo 'denied'; exit 1 ;;
"get slow.example") sleep 5 ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
"""


@pytest.fixture(autouse=True)
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of docker's, and on the PATH a helper `test`."""
    program = tmp_path / "bin" / "docker-credential-test"
    program.parent.mkdir()
    program.write_text(HELPER, "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setattr(credentials, "HELPER_TIMEOUT_S", 0.5)
    return tmp_path


def write(docker: Path, config: Any) -> None:
    (docker / "config.json").write_text(config if isinstance(config, str) else json.dumps(config), "utf-8")


@pytest.mark.parametrize(
    ("config", "host", "found"),
    [
        ({"auths": {HOST: {"auth": AUTH}}}, HOST, OURS),
        ({"auths": {f"https://{HOST}": {"auth": AUTH}}}, HOST, OURS),
        ({"auths": {f"https://{HOST}/v2/": {"auth": AUTH}}}, HOST, OURS),
        ({"auths": {HOST: {"auth": AUTH}}, "credsStore": "absent"}, HOST, OURS),
        ({"auths": {HOST: {}}, "credsStore": "test"}, HOST, OURS),
        ({"credsStore": "test"}, HOST, OURS),
        ({"credHelpers": {HOST: "test"}}, HOST, OURS),
        ({"credHelpers": {HOST: "test"}, "credsStore": "absent"}, HOST, OURS),
        ({"auths": {"https://index.hub.example/v1/": {"auth": AUTH}}}, "registry-1.hub.example", OURS),
        (
            {"auths": {"https://index.hub.example/v1/": {}}, "credsStore": "test"},
            "registry-1.hub.example",
            Login("hub", "word"),
        ),
        ({"auths": {"https://index.hub.example/v1/": {"auth": AUTH}}}, "other.hub.example", None),
        ({"auths": {"other.example": {"auth": AUTH}}}, HOST, None),
        ({"auths": {"registry.example": {"auth": AUTH}}}, HOST, None),  # another port is another server
        ({"credsStore": "test"}, "unknown.example", None),
        ({}, HOST, None),
        (None, HOST, None),
    ],
)
def test_a_login_is_found_in_each_form(docker: Path, config: Any, host: str, found: Login | None) -> None:
    if config is not None:
        write(docker, config)
    assert login_for(host) == found


@pytest.mark.parametrize(
    ("config", "host", "words"),
    [
        ({"credsStore": "absent"}, HOST, "the helper docker-credential-absent, which cannot be run here"),
        ({"credHelpers": {HOST: "absent"}}, HOST, "the helper docker-credential-absent"),
        ({"credsStore": "../x"}, HOST, "its helper '../x' has no name"),
        ({"credsStore": "test"}, "token.example", TOKEN),
        ({"credsStore": "test"}, "broken.example", "docker-credential-test, which gave none (exit code 0)"),
        ({"credsStore": "test"}, "denied.example", "docker-credential-test, which gave none (exit code 1)"),
        ({"credsStore": "test"}, "slow.example", "docker-credential-test, which did not answer within 0.5 s"),
        ({"auths": {HOST: {"identitytoken": "secret"}}}, HOST, TOKEN),
        ({"auths": {HOST: {"auth": "no base64"}}}, HOST, "no USER:PASSWORD in base64"),
        ("{", HOST, "config.json is no JSON"),
        ([], HOST, "config.json is no object"),
    ],
)
def test_what_cannot_be_used_is_named_instead_of_a_login(docker: Path, config: Any, host: str, words: str) -> None:
    write(docker, config)
    said = how_to_log_in(Reference(host, "a", "1", None))
    assert words in said
    assert "put a config.json with an `auth` for it into the folder that DOCKER_CONFIG names" in said
    assert "docker login" not in said
    assert "secret" not in said


def test_who_has_not_logged_in_is_told_to(docker: Path) -> None:
    write(docker, {"auths": {}})
    assert how_to_log_in(Reference(HOST, "a", "1", None)).startswith(f"docker login {HOST}, or put a config.json")


class Registry:
    """A stand-in for the one of ORAS, which wants a password and finds none by itself."""

    greeting: Any = None

    def __init__(self, host: str, *, insecure: bool) -> None:
        self.prefix = "http" if insecure else "https"
        self.session = SimpleNamespace(request=lambda *_, **__: self.greeting)
        self.auth = SimpleNamespace(_basic_auth=None, load_configs=lambda *_, **__: None)
        self.auth.set_basic_auth = lambda user, secret: setattr(self.auth, "_basic_auth", f"{user}/{secret}")

    def get_container(self, name: str) -> str:
        return name


@pytest.fixture
def oras(monkeypatch: pytest.MonkeyPatch) -> type[Registry]:
    names = ("oras", "oras.provider", "requests", "requests.exceptions")
    modules = {name: ModuleType(name) for name in names}
    modules["oras.provider"].Registry = Registry  # type: ignore[attr-defined]
    modules["requests.exceptions"].SSLError = OSError  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return Registry


def greeting(url: str, status: int = 200, **headers: str) -> Any:
    given = {name.replace("_", "-"): text for name, text in headers.items()}
    return SimpleNamespace(url=url, status_code=status, headers=given)


def test_the_registry_gets_what_the_helper_gave(
    docker: Path, oras: type[Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oras, "greeting", greeting(f"https://{HOST}/v2/", Www_Authenticate="Basic realm=x"))
    reference = Reference(HOST, "a", "1", None)
    with pytest.raises(ConfigError, match=f"wants a password, and there is none for it; docker login {HOST}"):
        opened(reference, plain_http=False)
    write(docker, {"credsStore": "absent"})
    with pytest.raises(ConfigError, match="docker-credential-absent, which cannot be run here"):
        opened(reference, plain_http=False)
    write(docker, {"credsStore": "test"})
    assert opened(reference, plain_http=False).basic == "user/pass:word"


@pytest.mark.parametrize("status", [200, 404])
def test_a_web_site_that_images_are_called_by_is_no_registry(
    oras: type[Registry], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    page = greeting("https://www.hub.example/", status, Content_Type="text/html; charset=utf-8")
    monkeypatch.setattr(oras, "greeting", page)
    with pytest.raises(
        ConfigError, match=r"hub\.example is no registry: .* www\.hub\.example .* registry-1\.hub\.example"
    ):
        opened(Reference("hub.example", "a/b", "1", None), plain_http=False)


@pytest.mark.parametrize(("status", "more"), [(401, {"Www_Authenticate": "Bearer realm=x"}), (502, {})])
def test_a_page_of_what_stands_before_a_registry_is_none(
    oras: type[Registry], monkeypatch: pytest.MonkeyPatch, status: int, more: dict[str, str]
) -> None:
    page = greeting("https://hub.example/v2/", status, Content_Type="text/html", **more)
    monkeypatch.setattr(oras, "greeting", page)
    assert opened(Reference("hub.example", "a/b", "1", None), plain_http=False).basic is None
