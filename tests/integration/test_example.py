"""The example project's demo, on each broker: one variable says which."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support.cluster import ROOT, redis_url


@pytest.mark.parametrize("broker", ["files", "redis", "rabbitmq"])
def test_the_demo(request: Any, broker: str) -> None:
    env = {key: value for key, value in os.environ.items() if key != "BROKER_URL"}
    if broker == "redis":
        env["BROKER_URL"] = redis_url(request.getfixturevalue("redis_server"), 5)
    elif broker == "rabbitmq":
        env["BROKER_URL"] = request.getfixturevalue("rabbitmq_server").url
    done = subprocess.run(
        [sys.executable, str(ROOT / "example_project" / "demo.py")],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Interrupted at approval (waiting for 'approval')" in done.stdout
    assert 'POST {"by": "ann"}: 204' in done.stdout
    assert 'POST {"by": "bob"}: 409' in done.stdout
    assert "ok 0 were imported twice" in done.stdout
    assert "ok approved by ann" in done.stdout
    assert "ok 10 tasks counted 28,298 airports" in done.stdout
    assert "All checks passed" in done.stdout
