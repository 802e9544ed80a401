"""A short storm on each broker: a known one, and a new one each time."""

from __future__ import annotations

import os
import random

import pytest

from tests.chaos.report import problems, show
from tests.chaos.run import Run, arguments
from tests.chaos.site import BROKERS
from tests.support import servers

SECONDS = os.environ.get("CHAOS_SECONDS", "12")


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("seed", [7, None], ids=["known", "new"])
@pytest.mark.parametrize("broker", BROKERS)
def test_nothing_is_lost_in_a_storm(broker: str, seed: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    missing = servers.missing()
    for server in {"redis": ["redis"], "rabbitmq": ["redis", "rabbitmq"]}.get(broker, []):
        if server in missing:
            problem = f"{missing[server]} is missing; install it (apt-get install {missing[server]})"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(problem)
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    run = Run(arguments(["--broker", broker, "--seconds", SECONDS, "--seed", str(seed)]))
    holds = run()
    with capsys.disabled():
        print(f"\nseed {seed}")
    show(run, holds)
    assert holds, "\n".join([f"seed {seed}", *problems(run)])
