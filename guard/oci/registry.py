"""Registries of images: a bundle pushed to one and pulled from one, by the client library of ORAS.

Rule 1: what is pushed is the image layout, byte for byte, so its digest is known before; what is pulled is verified.
Rule 2: credentials are those of `docker login` (guard/oci/credentials.py): in DOCKER_CONFIG, or in ~/.docker, or with
        the helper that is named there. None are printed.
Rule 3: one try a request. ORAS tries five times for two minutes, wrong credentials too; a job tries again as a whole.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from guard.errors import BundleError, ConfigError, NotReadyError
from guard.oci.credentials import login_for
from guard.oci.image import (
    BLOBS,
    CHUNK_BYTES,
    DIGEST,
    INDEX_FILE,
    INDEX_TYPE,
    INDEX_TYPES,
    LAYOUT,
    LAYOUT_FILE,
    MANIFEST_TYPE,
    MANIFEST_TYPES,
    MAX_DOCUMENT_BYTES,
    Descriptor,
    chosen,
    document,
    layers_of,
    parsed,
    read_document,
    verified_file,
)

SCHEME = "oci://"  # as KServe and Helm write it
WORD = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
NAME = re.compile(
    rf"(?P<host>[A-Za-z0-9.-]+(?::\d+)?|\[[0-9a-fA-F:]+\](?::\d+)?)/(?P<name>{WORD}(?:/{WORD})*)"
    rf"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}))?(?:@(?P<digest>{DIGEST.pattern}))?"
)
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 120.0
REFUSED = re.compile("authentication|UNAUTHORIZED|DENIED")  # in the errors of ORAS


@dataclass(frozen=True)
class Reference:
    """A place in a registry: HOST/NAME:TAG, or HOST/NAME@DIGEST."""

    host: str
    name: str
    tag: str
    digest: str | None

    @staticmethod
    def read(text: str) -> Reference:
        """Read `oci://HOST/NAME[:TAG][@DIGEST]`. Raises ConfigError."""
        found = NAME.fullmatch(text.removeprefix(SCHEME))
        if found is not None and found["host"] == "localhost":  # which ORAS takes for the first part of the name
            raise ConfigError(
                f"{text!r} is no place in a registry: localhost needs its port; "
                f"wanted {SCHEME}localhost:PORT/NAME[:TAG]"
            )
        if found is None or not is_host(found["host"]):
            raise ConfigError(
                f"{text!r} is no place in a registry; wanted {SCHEME}HOST[:PORT]/NAME[:TAG], the name in lower case, "
                f"such as {SCHEME}registry.example/guards/digits:1"
            )
        return Reference(found["host"], found["name"], found["tag"] or "latest", found["digest"])

    @property
    def is_local(self) -> bool:
        """Whether the registry is on this machine, where it need not speak TLS."""
        host = urlsplit(f"//{self.host}").hostname or ""
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def text(self) -> str:
        """The reference as other tools write it."""
        return f"{self.host}/{self.name}@{self.digest}" if self.digest else f"{self.host}/{self.name}:{self.tag}"

    def pinned(self, digest: str) -> str:
        """The reference to one image for good, whatever becomes of its tag."""
        return f"{self.host}/{self.name}@{digest}"


def is_host(text: str) -> bool:
    """Tell whether the first part of a reference is a registry's address, and no part of a name."""
    return any(sign in text for sign in ".:")


def push(layout: Path, reference: Reference, *, plain_http: bool = False) -> str:
    """Push the image of a layout, and return its digest.

    Raises:
        NotReadyError: the registry does not answer, or fails.
        ConfigError: it wants other credentials.
        BundleError: it takes something of the image for wrong.
    """
    if reference.digest:
        raise ConfigError(f"{SCHEME}{reference.text} names a digest, which follows from what is pushed; name a tag")
    index = parsed((layout / INDEX_FILE).read_bytes(), str(layout / INDEX_FILE))
    image = chosen(index, str(layout / INDEX_FILE))
    manifest = read_document(image, layout)
    blobs = [*layers_of(manifest, str(layout)), Descriptor.read(manifest.get("config"), str(layout))]
    with asked(reference):
        registry = opened(reference, plain_http=plain_http)
        container = registry.get_container(reference.text)
        for blob in blobs:
            layer = {"digest": blob.digest, "size": blob.size_bytes}
            check(registry.upload_blob(str(verified_file(blob, layout)), container, layer), reference, "push to")
        url, kind = f"{registry.prefix}://{container.manifest_url()}", {"Content-Type": image.media_type}
        content = verified_file(image, layout).read_bytes()
        answer = check(registry.do_request(url, "PUT", data=content, headers=kind), reference, "push to")
    stored = answer.headers.get("Docker-Content-Digest", image.digest)
    if stored != image.digest:
        raise BundleError(f"{reference.text} stored the image as {stored}, and not as {image.digest}: it changed it")
    return image.digest


def pull(reference: Reference, layout: Path, *, plain_http: bool = False) -> str:
    """Write the image of a registry as a layout into an empty directory, and return its digest.

    Raises:
        NotReadyError: the registry does not answer, or fails.
        ConfigError: it wants other credentials.
        BundleError: there is no such image, or what came is another one.
    """
    (layout / BLOBS).mkdir(parents=True)
    with asked(reference):
        registry = opened(reference, plain_http=plain_http)
        container = registry.get_container(reference.text)
        top = fetch_document(registry, container, reference.digest or reference.tag, reference, layout)
        image = top
        if image.media_type in INDEX_TYPES:
            image = chosen(read_document(image, layout), reference.text)
            image = fetch_document(registry, container, image.digest, reference, layout)
        manifest = read_document(image, layout)
        for blob in (*layers_of(manifest, reference.text), Descriptor.read(manifest.get("config"), reference.text)):
            fetch_blob(registry, container, blob, reference, layout)
    (layout / LAYOUT_FILE).write_bytes(document(LAYOUT))
    (layout / INDEX_FILE).write_bytes(
        document({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [image.to_json()]})
    )
    return top.digest


def fetch_document(registry: Any, container: Any, name: str, reference: Reference, layout: Path) -> Descriptor:
    """Fetch a manifest or an index by tag or digest into the layout, and describe it."""
    url, kinds = f"{registry.prefix}://{container.manifest_url(name)}", ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
    answer = check(registry.do_request(url, "GET", headers={"Accept": kinds}, stream=True), reference, "pull from")
    content = b""
    for part in answer.iter_content(CHUNK_BYTES):
        content += part
        if len(content) > MAX_DOCUMENT_BYTES:
            raise BundleError(
                f"{reference.text} has a manifest of more than {MAX_DOCUMENT_BYTES} bytes; it is no image"
            )
    kind = str(parsed(content, reference.text).get("mediaType") or answer.headers.get("Content-Type", MANIFEST_TYPE))
    found = Descriptor.of(content, kind)
    if name.startswith("sha256:") and found.digest != name:
        raise BundleError(
            f"{reference.text} answered with {found.digest}, and {name} was asked for; nothing was written"
        )
    found.file(layout).write_bytes(content)
    return found


def fetch_blob(registry: Any, container: Any, blob: Descriptor, reference: Reference, layout: Path) -> None:
    """Fetch a blob into the layout, no further than its size says. Raises BundleError where it is another one."""
    answer = check(registry.get_blob(container, blob.digest, stream=True), reference, "pull from")
    left = blob.size_bytes
    with blob.file(layout).open("wb") as stream:
        for part in answer.iter_content(CHUNK_BYTES):
            left -= len(part)
            if left < 0:
                raise BundleError(
                    f"{reference.text} sends more of {blob.digest} than the {blob.size_bytes} bytes it has"
                )
            stream.write(part)
    verified_file(blob, layout)


def opened(reference: Reference, *, plain_http: bool) -> Any:
    """Open a registry with the credentials that there are for it, once it has answered.

    Raises:
        ConfigError: it wants credentials, and there are none.
    """
    from oras.provider import Registry
    from requests.exceptions import SSLError

    class OneTry(Registry):  # type: ignore[misc, unused-ignore]
        """A registry that is asked once, and gets a password with the first request where it wants one."""

        basic: str | None = None

        def do_request(self, url: str, method: str = "GET", data: Any = None, headers: Any = None, **more: Any) -> Any:
            given = dict(headers or {})
            if self.basic and urlsplit(url).netloc == reference.host:
                given["Authorization"] = f"Basic {self.basic}"
                return self.session.request(method, url, data=data, headers=given, **more)
            once = Registry.do_request.__wrapped__
            return once(self, url, method, data=data, headers=given, **more)

    def greeted(*, insecure: bool) -> tuple[Any, Any]:
        registry = OneTry(reference.host, insecure=insecure)
        registry.session.request = partial(registry.session.request, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S))
        return registry, registry.session.request("GET", f"{registry.prefix}://{reference.host}/v2/")

    try:
        registry, answer = greeted(insecure=plain_http)
    except SSLError:
        if not reference.is_local:
            raise
        registry, answer = greeted(insecure=True)
    check_greeting(answer, reference)
    wanted = str(answer.headers.get("Www-Authenticate", ""))
    registry.auth.load_configs(registry.get_container(reference.text), configs=docker_configs())
    if not getattr(registry.auth, "_basic_auth", None):  # ORAS reads `auth` alone, and under this very host
        login = login_for(reference.host)
        if login is not None and login.secret:
            registry.auth.set_basic_auth(login.user, login.secret)
    known = getattr(registry.auth, "_basic_auth", None)
    if wanted.lower().startswith("basic"):
        if not known:
            raise ConfigError(
                f"{reference.host} wants a password, and there is none for it; {how_to_log_in(reference)}"
            )
        registry.basic = known
    return registry


def docker_configs() -> list[str] | None:
    """The file with credentials in DOCKER_CONFIG, where that is set and has one."""
    folder = os.environ.get("DOCKER_CONFIG")
    file = Path(folder) / "config.json" if folder else None
    return [str(file)] if file is not None and file.is_file() else None


def check_greeting(answer: Any, reference: Reference) -> None:
    """Raise ConfigError where what answered is no registry, such as the web site that images are called by."""
    is_page = str(answer.headers.get("Content-Type", "")).startswith("text/html")
    if is_page and "Www-Authenticate" not in answer.headers and int(answer.status_code) < 500:
        raise ConfigError(
            f"{reference.host} is no registry: a web page of {urlsplit(str(answer.url)).netloc} answered; "
            f"name the host that serves the images, such as registry-1.{reference.host}"
        )


def how_to_log_in(reference: Reference) -> str:
    login = login_for(reference.host)
    if login is not None and login.why_not:
        return f"{login.why_not}; put a config.json with an `auth` for it into the folder that DOCKER_CONFIG names"
    return f"docker login {reference.host}, or put a config.json with it into the folder that DOCKER_CONFIG names"


def check(answer: Any, reference: Reference, act: str) -> Any:
    """Return an answer of a registry that is a success. Raises what `push` and `pull` do."""
    code = int(answer.status_code)
    if code < 300:
        return answer
    said = said_by(answer)
    if code in (401, 403):
        raise ConfigError(
            f"{reference.host} does not let these credentials {act} {reference.name} ({code}{said}); "
            f"{how_to_log_in(reference)}"
        )
    if code == 404:
        raise BundleError(f"{reference.text} is not there ({code}{said}); look at the name and the tag")
    if code >= 500 or code == 429:
        raise NotReadyError(f"{reference.host} cannot {act} {reference.name} now ({code}{said}); try again")
    raise BundleError(f"{reference.host} refuses to {act} {reference.text} ({code}{said})")


def said_by(answer: Any) -> str:
    """The words of a registry's error, or nothing."""
    try:
        return "".join(f", {one['code']}: {str(one.get('message', ''))[:200]}" for one in answer.json()["errors"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


@contextmanager
def asked(reference: Reference) -> Iterator[None]:
    """Turn what fails on the way to a registry into errors of ours."""
    import requests

    try:
        yield
    except requests.exceptions.SSLError as error:
        raise NotReadyError(
            f"{reference.host} speaks no TLS that is trusted ({cause_of(error)}); for a private authority set "
            "REQUESTS_CA_BUNDLE, for none at all give --plain-http"
        ) from error
    except requests.exceptions.RequestException as error:
        raise NotReadyError(f"{reference.host} cannot be reached ({cause_of(error)}); look at the address") from error
    except ValueError as error:  # of ORAS
        if REFUSED.search(str(error)):
            raise ConfigError(
                f"{reference.host} accepts no credentials that there are for it; {how_to_log_in(reference)}"
            ) from error
        raise NotReadyError(f"{reference.host} gave no answer that can be used: {error}") from error


def cause_of(error: BaseException) -> str:
    """The innermost cause of a failed request, in a few words."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error).rpartition(": ")[2][:200] or type(error).__name__
