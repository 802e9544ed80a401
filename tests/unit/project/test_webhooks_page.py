"""The recipes of docs/howto/webhooks.md, with senders that sign as the services do."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from celery import Celery
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from flask import Flask

from celery_continuations.callbacks import callback_url
from celery_continuations.stores import open_store
from tests.support.worker import Worker, make_app

PAGE = Path(__file__).parents[3] / "docs" / "howto/webhooks.md"  # "howto/webhooks.md" in docs
SECRET, TOPIC, BASE = (
    "what the service signs with",
    "arn:aws:sns:eu-west-1:1:results",
    "https://example.com/callbacks/twilio",
)
CERTIFICATE_URL = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-0123abc.pem"

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def certificate() -> bytes:
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns")]), datetime.now(timezone.utc)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(KEY.public_key())
    made = made.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return made.sign(KEY, SHA256()).public_bytes(Encoding.PEM)


Sent = tuple[str, bytes, dict[str, str]]  # path, body, headers


def hexdigest(secret: str, message: bytes) -> str:
    return hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()


def stripe(token: str, secret: str = SECRET, at: float = 0) -> Sent:
    found = {"id": "pi_1", "metadata": {"callback": token}}
    body = json.dumps({"type": "payment_intent.succeeded", "data": {"object": found}, "created": time.time()}).encode()
    sent_at = str(int(time.time() + at))
    signature = hexdigest(secret, f"{sent_at}.".encode() + body)
    return "/webhooks/stripe", body, {"Stripe-Signature": f"t={sent_at},v0=old,v1={'0' * 64},v1={signature}"}


def github(token: str, secret: str = SECRET, at: float = 0) -> Sent:
    event = {"deployment_status": {"state": "success"}, "deployment": {"payload": {"callback": token}}}
    body = json.dumps(event).encode()
    headers = {"X-Hub-Signature-256": f"sha256={hexdigest(secret, body)}", "X-GitHub-Event": "deployment_status"}
    return "/webhooks/github", body, headers


def slack(token: str, secret: str = SECRET, at: float = 0) -> Sent:
    event = {"user": {"id": "U1"}, "actions": [{"value": token}], "trigger_id": str(time.time())}
    body = urlencode({"payload": json.dumps(event)}).encode()
    sent_at = str(int(time.time() + at))
    signature = "v0=" + hexdigest(secret, f"v0:{sent_at}:".encode() + body)
    return "/webhooks/slack", body, {
        "X-Slack-Signature": signature, "X-Slack-Request-Timestamp": sent_at,
        "Content-Type": "application/x-www-form-urlencoded",
    }  # fmt: skip


def twilio(token: str, secret: str = SECRET, at: float = 0) -> Sent:
    form = {"MessageStatus": "delivered", "MessageSid": "SM1", "To": "+1 555 0100", "Body": "ü"}
    message = f"{BASE}/{token}" + "".join(key + form[key] for key in sorted(form))
    signature = base64.b64encode(hmac.new(secret.encode(), message.encode(), hashlib.sha1).digest()).decode()
    headers = {"X-Twilio-Signature": signature, "Content-Type": "application/x-www-form-urlencoded"}
    return f"/callbacks/twilio/{token}", urlencode(form).encode(), headers


def sns(token: str, secret: str = SECRET, at: float = 0, **fields: Any) -> Sent:
    event: dict[str, Any] = {
        "Type": "Notification", "MessageId": "1", "TopicArn": TOPIC, "Timestamp": "2026-01-01T00:00:00.000Z",
        "Message": json.dumps({"callback": token, "result": {"ok": True}}), "SignatureVersion": "2",
        "SigningCertURL": CERTIFICATE_URL, **fields,
    }  # fmt: skip
    names = ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type")
    text = "".join(f"{name}\n{event[name]}\n" for name in names if name in event) + ("" if secret == SECRET else "!")
    event["Signature"] = base64.b64encode(KEY.sign(text.encode(), PKCS1v15(), SHA256())).decode()
    return "/webhooks/sns", json.dumps(event).encode(), {"Content-Type": "text/plain; charset=UTF-8"}


SENDERS: dict[str, tuple[Callable[..., Sent], Any]] = {
    "stripe": (stripe, {"id": "pi_1"}),
    "github": (github, {"state": "success"}),
    "slack": (slack, {"by": "U1"}),
    "twilio": (twilio, {"MessageStatus": "delivered", "MessageSid": "SM1", "To": "+1 555 0100", "Body": "ü"}),
    "sns": (sns, {"ok": True}),
}

every_sender = pytest.mark.parametrize("sender", SENDERS)


class Site:
    """The page's views, and a task that waits."""

    def __init__(self) -> None:
        self.app: Celery = make_app(
            continuation_callback_url=BASE, continuation_callback_secret="only a test, of 32 characters or more"
        )
        self.downloads: list[str] = []
        self.charged: list[str] = []
        flask = Flask("web")
        self.names: dict[str, Any] = {
            "__name__": "page", "app": self.app, "flask_app": flask, "download": self.download,
            "charge": lambda order, metadata: self.charged.append(metadata["callback"]), "ship": lambda *args: args,
        }  # fmt: skip
        for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S):
            exec(compile(block, str(PAGE), "exec", dont_inherit=True), self.names)
        self._client = flask.test_client()
        self.worker = Worker(self.app)

    def download(self, url: str) -> bytes:
        self.downloads.append(url)
        if "missing" in url:
            raise ConnectionError
        return certificate()

    def token(self) -> str:
        return callback_url(self.app, "of the page of webhooks", "payment").rpartition("/")[2]

    def post(self, sent: Sent) -> int:
        path, body, headers = sent
        headers = {"Content-Type": "application/json", **headers}
        return self._client.post(path, data=body, headers=headers).status_code

    def delivered(self) -> list[Any]:
        return [json.loads(record.inbox)["payment"][1] for _, record in open_store(self.app, "memory").records()]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, own_tasks: None) -> Site:
    for name in ("STRIPE_SECRET", "GITHUB_SECRET", "SLACK_SECRET", "TWILIO_AUTH_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("SNS_TOPIC", TOPIC)
    return Site()


@every_sender
def test_a_signed_event_is_delivered_and_may_be_repeated(site: Site, sender: str) -> None:
    send, payload = SENDERS[sender]
    token = site.token()
    for _ in range(2):
        assert site.post(send(token)) in (200, 204)
    assert site.delivered() == [payload]


@every_sender
def test_what_is_not_signed_by_the_service_is_refused(site: Site, sender: str) -> None:
    send = SENDERS[sender][0]
    assert site.post(send(site.token(), secret="another")) == 401
    assert site.delivered() == []


@every_sender
def test_a_change_is_refused(site: Site, sender: str) -> None:
    path, body, headers = SENDERS[sender][0](site.token())
    signature = next((name for name in headers if "Signature" in name), None)
    changed = body.replace(b"success", b"failure").replace(b"delivered", b"failed").replace(b"pi_1", b"pi_2")
    changed = changed.replace(b"U1", b"U2").replace(b"true", b"false")
    assert changed != body
    for wrong in (
        (path, changed, headers),
        (path, body + b" ", headers) if sender not in ("sns", "twilio") else (path, b"", headers),
        (path, body, {**headers, signature: headers[signature][:-1]}) if signature else (path, changed, headers),
        (path, body, {key: value for key, value in headers.items() if key != signature})
        if signature
        else (path, changed, {}),
    ):
        assert site.post(wrong) in (400, 401)
    assert site.delivered() == []


@pytest.mark.parametrize("sender", ["stripe", "slack"])
@pytest.mark.parametrize("at", [-301, 400])
def test_an_old_event_is_refused(site: Site, sender: str, at: float) -> None:
    assert site.post(SENDERS[sender][0](site.token(), at=at)) == 401
    assert site.delivered() == []


@pytest.mark.exhaustive
@every_sender
@pytest.mark.parametrize("body", [b"", b"{", b"[" * 200_000, b"[]", b"null", b'{"a":1}', b"\xff", b"payload=1"])
@pytest.mark.parametrize("value", ["", "ü", "t=,v1=", "t=\xb2,v1=\xb2", "v0=", "sha256=", "t=" + "9" * 5000])
def test_a_stranger_never_gets_a_500(site: Site, sender: str, body: bytes, value: str) -> None:
    path, _, headers = SENDERS[sender][0](site.token())
    forged = {name: value for name in headers if name.startswith("X-") or "Signature" in name}
    for kind in ("application/json", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert 400 <= site.post((path, body, {**forged, "Content-Type": kind})) < 500
    assert site.delivered() == []


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"SigningCertURL": "https://sns.eu-west-1.amazonaws.com.example.com/SimpleNotificationService-1.pem"}, 401),
        ({"SigningCertURL": "http://sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem"}, 401),
        ({"SigningCertURL": "https://example.com/SimpleNotificationService-1.pem"}, 401),
        ({"SigningCertURL": [CERTIFICATE_URL]}, 401),
        ({"SigningCertURL": CERTIFICATE_URL.replace("0123abc", "missing")}, 503),
        ({"SignatureVersion": "1"}, 401),
        ({"TopicArn": "arn:aws:sns:eu-west-1:2:results"}, 401),
    ],
)
def test_sns_is_believed_only_for_its_own_certificates_and_topic(site: Site, fields: Any, status: int) -> None:
    assert site.post(sns(site.token(), **fields)) == status
    assert site.delivered() == []
    assert all(url.startswith("https://sns.eu-west-1.amazonaws.com/") for url in site.downloads)


@every_sender
def test_a_guessed_token_of_a_signed_event_is_refused(site: Site, sender: str) -> None:
    assert site.post(SENDERS[sender][0]("guessed")) == 404


def test_the_task_continues_with_the_event(site: Site) -> None:
    result = site.names["fulfil"].apply_async((7,))
    site.worker.deliver()
    assert site.post(stripe(site.charged[0])) == 204
    site.worker.drain()
    assert result.get() == [7, "pi_1"]
    assert site.post(stripe(site.charged[0])) == 204, "sent again after the end"
