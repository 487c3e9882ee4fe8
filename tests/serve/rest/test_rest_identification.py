"""Callers over HTTP: the same principals as over gRPC, by token, by certificate and by a proxy's word."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import httpx
from cryptography import x509

from tests.serve import tiny_bundle
from tests.serve.authority import Authority
from tests.serve.rest.rest_guarded import INFER, json_body, rest_guarding

ORDINARY, BRIGHT = tiny_bundle.ordinary(1), tiny_bundle.bright(1)
TOKEN = "0123456789abcdef"
BEARER = {"authorization": f"Bearer {TOKEN}"}
XFCC = {"x-forwarded-client-cert": "URI=spiffe://mesh/camera"}


def test_a_token_is_wanted_of_every_path_but_health(bundle: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"camera {TOKEN}\n", "utf-8")

    async def story() -> None:
        settings = {"principal_from": "bearer", "client_tokens": str(tokens)}
        async with rest_guarding(bundle, **settings) as guarded:
            refused = await guarded.infer(ORDINARY)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert "authorization: Bearer TOKEN" in refused.json()["error"]
            assert (await guarded.post(json_body(ORDINARY), {"authorization": f"Bearer {TOKEN}x"})).status_code == 401
            twice = httpx.Headers([*BEARER.items(), *BEARER.items()])
            assert (await guarded.client.post(INFER, content=json_body(ORDINARY), headers=twice)).status_code == 401
            for path in ("/v2", "/v2/models/tiny", "/v2/models/tiny/ready", "/v2/models/tiny/config"):
                assert (await guarded.client.get(path)).status_code == 401, path
            for path in ("/v2/health/live", "/v2/health/ready"):
                assert (await guarded.client.get(path)).status_code == 200, path
            assert guarded.upstream.bodies == []
            assert (await guarded.post(json_body(ORDINARY), BEARER)).status_code == 200
            assert "authorization" not in dict(guarded.upstream.headers[-1])
            assert (await guarded.post(json_body(BRIGHT), BEARER)).status_code == 403
            (told,) = guarded.events("reject")
            assert told["principal"] == "camera"
            assert TOKEN not in guarded.log.getvalue()

    asyncio.run(story())


def test_a_proxys_word_and_a_clients_own(bundle: Path) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, principal_from="xfcc", trusted_hops=("127.0.0.1",)) as guarded:
            assert (await guarded.post(json_body(BRIGHT), XFCC)).status_code == 403
            assert guarded.events("reject")[0]["principal"] == "spiffe://mesh/camera"
            assert (await guarded.post(json_body(ORDINARY), XFCC)).status_code == 200
            assert dict(guarded.upstream.headers[-1])["x-forwarded-client-cert"] == XFCC["x-forwarded-client-cert"]
            assert (await guarded.infer(ORDINARY)).status_code == 401
        async with rest_guarding(bundle, principal_from="xfcc", trusted_hops=("10.0.0.0/8",)) as guarded:
            assert (await guarded.post(json_body(ORDINARY), XFCC)).status_code == 401
        async with rest_guarding(bundle) as guarded:
            assert (await guarded.post(json_body(ORDINARY), XFCC)).status_code == 200
            assert "x-forwarded-client-cert" not in dict(guarded.upstream.headers[-1])

    asyncio.run(story())


def test_a_certificate_tells_who_calls(bundle: Path, tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.issue().write(tmp_path, "guard")
    own = authority.issue(x509.UniformResourceIdentifier("spiffe://mesh/camera")).write(tmp_path, "own")
    settings = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": authority.write(tmp_path, "ca.pem")}

    async def story() -> None:
        async with rest_guarding(bundle, principal_from="tls", **settings) as guarded:
            verify = ssl.create_default_context(cadata=authority.pem.decode())
            verify.load_cert_chain(*own)
            base = f"https://localhost:{guarded.address[1]}"
            async with httpx.AsyncClient(base_url=base, verify=verify, trust_env=False) as client:
                assert (await client.post(INFER, content=json_body(ORDINARY))).status_code == 200
                assert (await client.post(INFER, content=json_body(BRIGHT))).status_code == 403
            assert guarded.events("reject")[0]["principal"] == "spiffe://mesh/camera"

    asyncio.run(story())
