"""Who may see usage: tokens that are good, all those that are not, and roles that come and go."""

from __future__ import annotations

import base64
import hmac
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from aggregator.errors import UsageError
from aggregator.settings import Settings, load_settings
from aggregator.web import auth, keys
from tests.harness import Database
from tests.web.conftest import ADMIN, SECRET, STRANGER, Client, token

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def jwk(key: rsa.RSAPrivateKey, kid: str | None, **more: Any) -> dict[str, Any]:
    members = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
    return {**members, **({} if kid is None else {"kid": kid}), **more}


def forged(header: dict[str, Any], key: bytes | None = None, **claims: Any) -> str:
    """Return a token made by hand, as no library would: signed by HMAC with any bytes, or not at all."""
    given = {"sub": str(ADMIN), "exp": int(time.time()) + 60, **claims}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, given)]
    text = b".".join(parts)
    signature = b"" if key is None else base64.urlsafe_b64encode(hmac.digest(key, text, "sha256")).rstrip(b"=")
    return (text + b"." + signature).decode()


def refused(client: Client, bearer: str) -> None:
    answer = client.get("/admin/usage?days=x", bearer)
    assert (answer.status, answer.body) == (401, b'{"error":"the token is not valid"}'), bearer
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.headers["cache-control"] == "no-store"


def test_tokens_by_secret(client: Client) -> None:
    """Only a token by our secret, that has not expired, of a subject that is a UUID."""
    now = int(time.time())
    good = token()
    assert client.get("/admin/usage", good).status == 200
    assert client.get("/admin/usage", None, authorization=f"bearer  {good}").status == 200
    head, body, signature = good.split(".")
    for bad in (
        token("x" * 64),
        token(exp=now - 60),
        token(exp=None),
        token(nbf=now + 3600),
        token(iat=now + 3600),
        token(sub=None),
        token(sub=""),
        token(sub="admin"),
        token(sub=str(ADMIN) + "\n"),
        token(sub="' or true --"),
        token(aud="anybody"),
        token(algorithm="HS384"),
        token(algorithm="HS512"),
        token(KEY, algorithm="RS256"),
        forged({"alg": "none"}),
        forged({"alg": "None", "typ": "JWT"}),
        forged({"alg": "HS256"}, b""),
        forged({"alg": "HS256"}, SECRET.encode(), sub=5),
        forged({"alg": "HS256"}, SECRET.encode(), sub=[str(ADMIN)]),
        forged({"alg": "HS256"}, SECRET.encode(), exp="never"),
        forged({"alg": "HS256"}, SECRET.encode(), exp=1e400),
        forged({"alg": "HS256"}, SECRET.encode(), exp=None),
        forged({"alg": ["HS256"]}, SECRET.encode()),
        forged({"alg": "HS256", "crit": ["exp"]}, SECRET.encode()),
        forged({}, SECRET.encode()),
        f"{head}.{body}.",
        f"{head}.{body}",
        f"{head}.{body}.{signature[:-2]}",
        f"{head}.{body[:-4]}.{signature}",
        f"{good}.{good}",
        "garbage",
        "a.b.c",
        "\u00e9.\u00e9.\u00e9",
        "." * 5000,
        "[" * 5000,
        good + "A" * 9000,
    ):
        refused(client, bad)


def test_headers_that_hold_no_token(client: Client) -> None:
    """No header, another scheme, two headers, a token elsewhere: 401."""
    good = token()
    assert client.get("/admin/usage", None).error == "a bearer token is required"
    assert client.get(f"/admin/usage?access_token={good}&token={good}", None).status == 401
    assert client.get("/admin/usage", None, cookie=f"token={good}").status == 401
    for value in ("", "Bearer", "Bearer ", f"Basic {good}", good, f"Bearer{good}"):
        assert client.get("/admin/usage", None, authorization=value).status == 401
    twice = [(b"authorization", f"Bearer {good}".encode())] * 2
    assert client.raw("/admin/usage", twice).status == 401


def test_issuer_and_audience(web_db: Database, new_client: Callable[..., Client]) -> None:
    """Checked, and required, when configured."""
    client = new_client(web_db, http_jwt_issuer="https://id.example", http_jwt_audience="usage")
    good: dict[str, Any] = {"iss": "https://id.example", "aud": ["other", "usage"]}
    assert client.get("/admin/usage", token(**good)).status == 200
    cases: list[dict[str, Any]] = [
        {"iss": "https://id.example.evil"}, {"iss": None}, {"iss": ["https://id.example"]}, {"iss": 5},
        {"aud": "other"}, {"aud": None}, {"aud": []}, {"aud": {"usage": 1}}, {"aud": "usage2"},
    ]  # fmt: skip
    for wrong in cases:
        refused(client, forged({"alg": "HS256"}, SECRET.encode(), **{**good, **wrong}))


def test_tokens_by_public_key(web_db: Database, new_client: Callable[..., Client], tmp_path: Path) -> None:
    """RS256 alone: the public key is no HMAC secret, and the token does not choose."""
    file = tmp_path / "key.pem"
    file.write_bytes(pem(KEY))
    client = new_client(web_db, http_jwt_secret=None, http_jwt_public_key=str(file))
    assert client.get("/admin/usage", token(KEY, algorithm="RS256")).status == 200
    confused = [pem(KEY), pem(KEY).strip(), pem(KEY).replace(b"\n", b"")]
    for bad in (
        *(forged({"alg": "HS256", "typ": "JWT"}, key) for key in confused),
        *(forged({"alg": "RS256", "typ": "JWT"}, key) for key in confused),
        token(OTHER_KEY, algorithm="RS256"),
        token(KEY, algorithm="RS512"),
        token(KEY, algorithm="PS256"),
        token(SECRET),
        forged({"alg": "none"}),
        token(OTHER_KEY, algorithm="RS256", headers={"jwk": jwk(OTHER_KEY, None), "jku": "https://evil.example/"}),
    ):
        refused(client, bad)


def test_tokens_by_key_set_file(web_db: Database, new_client: Callable[..., Client], tmp_path: Path) -> None:
    """The key that the token names; keys for other purposes are none; without a name, the only one."""
    file = tmp_path / "keys.json"
    file.write_text(
        json.dumps(
            {
                "keys": [
                    jwk(KEY, "one"),
                    jwk(OTHER_KEY, "two", use="enc"),
                    {"kty": "oct", "kid": "three", "k": "AAAA"},
                    5,
                ]
            }
        )
    )
    client = new_client(web_db, http_jwt_secret=None, http_jwt_jwks=str(file))
    for headers in ({"kid": "one"}, None):
        assert client.get("/admin/usage", token(KEY, algorithm="RS256", headers=headers)).status == 200
    refused(client, token(OTHER_KEY, algorithm="RS256", headers={"kid": "two"}))
    refused(client, token(OTHER_KEY, algorithm="RS256", headers={"kid": "one"}))
    refused(client, forged({"alg": "HS256", "kid": "three"}, b"\0\0\0"))
    for kid in (["one"], {"one": 1}, 1, "four", "../one", True):
        refused(client, forged({"alg": "RS256", "kid": kid}, b""))


def test_key_set_behind_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched when needed; a new key is found at once, unknown ones cause no flood; it may be away for a while."""
    now = 1000.0
    fetched: list[str] = []
    answer: Any = OSError()

    class Opener:
        def open(self, url: str, timeout: float) -> Any:  # noqa: ARG002 -- as urllib's
            fetched.append(url)
            if isinstance(answer, Exception):
                raise answer
            return io.BytesIO(json.dumps(answer).encode())

    monkeypatch.setattr(keys, "_opener", Opener())
    found = keys.KeySet("https://id.example/keys", clock=lambda: now)
    assert fetched == []
    with pytest.raises(keys.KeysUnavailableError):
        found.find("one")
    answer, now = {"keys": [jwk(KEY, "one")]}, now + 11
    assert found.find("one").public_numbers() == KEY.public_key().public_numbers()
    answer = {"keys": [jwk(OTHER_KEY, "two")]}
    for _ in range(100):
        with pytest.raises(jwt.PyJWTError):
            found.find("two")
    assert len(fetched) == 2
    now += 11
    assert found.find("two").public_numbers() == OTHER_KEY.public_key().public_numbers()
    with pytest.raises(jwt.PyJWTError):
        found.find("one")
    answer, now = OSError(), now + 3600
    assert found.find("two") is not None
    assert len(fetched) == 4


def test_subject_and_roles(web_db: Database, client: Client) -> None:
    """403 for who administers nothing, or is nobody; a role that is removed, or given, counts at the next request."""
    for sub in (STRANGER, "aaaaaaaa-0000-0000-0000-000000000009"):
        answer = client.get("/admin/usage?days=x", token(sub=str(sub)))
        assert (answer.status, answer.error) == (403, "not an owner or admin of any collection")
    assert client.get("/admin/usage", token(sub=str(ADMIN).upper())).status == 200
    web_db.execute("delete from public.edges where source_id = %s", (ADMIN,))
    assert client.get("/admin/usage").status == 403
    web_db.execute("update public.edges set edge_type = 'owner' where source_id = %s", (STRANGER,))
    assert client.get("/admin/usage", token(sub=str(STRANGER))).status == 200


def test_access_query(web_db: Database, new_client: Callable[..., Client]) -> None:
    """Any statement that is true; null, false, no row or another type let nobody in; it may write nothing."""
    for query, status in {
        "select true from public.edges where source_id = $user and edge_type like 'adm%' limit 1": 200,
        "select null::boolean where $user is not null": 403,
        "select 1 where $user is not null": 403,
        "select true where $user is null": 403,
        "select 't'::text where $user is not null": 403,
        "delete from public.edges where source_id = $user returning true": 500,
        "select $user": 403,
        "nonsense $user": 500,
    }.items():
        assert new_client(web_db, http_access_query=query).get("/admin/usage").status == status, query
    assert web_db.scalar("select count(*) from public.edges") == 2


def test_settings_of_keys(tmp_path: Path) -> None:
    """Exactly one kind of key, of a good length; what is wrong is said in one line that holds no secret."""
    small, other = tmp_path / "small.pem", tmp_path / "other.json"
    small.write_bytes(pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)))  # noqa: S505 -- too small
    other.write_text('{"keys": []}')
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "no key to check tokens by"),
        ({"http_jwt_secret": SECRET, "http_jwt_jwks": "x"}, "only one of"),
        ({"http_jwt_public_key": str(tmp_path / "none")}, "cannot read"),
        ({"http_jwt_public_key": str(small)}, "2048"),
        ({"http_jwt_public_key": str(other)}, "no public key in PEM"),
        ({"http_jwt_jwks": str(tmp_path / "none")}, "cannot read"),
        ({"http_jwt_jwks": str(other)}, "no RSA key"),
        ({"http_jwt_jwks": str(small)}, "_JWKS"),
        ({"http_jwt_jwks": "http://id.example/keys"}, "use https"),
    ]
    for settings, words in cases:
        with pytest.raises(UsageError, match=words):
            auth.authenticator(Settings(**settings))
    for secret, words in ((SECRET[:31], "32 bytes"), (pem(KEY).decode(), "PEM")):
        with pytest.raises(UsageError, match=words) as caught:
            load_settings(http_jwt_secret=secret)
        assert secret not in str(caught.value)
    with pytest.raises(UsageError, match="user"):
        load_settings(http_access_query="select true")
    assert SECRET not in repr(Settings(http_jwt_secret=SECRET))  # type: ignore[arg-type]
