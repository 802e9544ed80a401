"""What Flower shows of a task, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.cluster import Cluster
from tests.support.processes import LocalProcess, await_condition, free_port

# It runs without a display and as root, and must not send requests to the internet.
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


class Flower:
    """Flower's pages, as the browser shows them."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.requested: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requested.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def workers(self) -> str:
        """Return the text of the list of workers, loaded again."""
        self.page.goto(f"{self.url}/workers")
        return str(self.page.locator("#workers-table").text_content())  # a name is wrapped where it is shown

    def tasks(self) -> list[dict[str, str]]:
        """Return the list of tasks, loaded again: for each row the text in each column."""
        self.page.goto(f"{self.url}/tasks")
        self.page.wait_for_selector("#tasks-table tbody tr")
        heads = self.page.locator(".dataTables_scrollHead th").all_text_contents()
        rows = self.page.locator("#tasks-table tbody tr:has(td + td)").all()  # an empty list has a single cell
        return [dict(zip(heads, row.locator("td").all_inner_texts(), strict=True)) for row in rows]

    def details(self, task_id: str) -> dict[str, str]:
        """Return what the task's own page says, loaded again: the text beside each label."""
        self.page.goto(f"{self.url}/task/{task_id}")
        labels = self.page.locator(".detail-list dt").all_text_contents()
        texts = self.page.locator(".detail-list dd").all_inner_texts()
        return dict(zip(labels, texts, strict=True))

    def await_worker(self, worker: LocalProcess) -> None:
        """Wait for the worker to be listed: after that Flower receives its events."""
        await_condition(lambda: node_name(worker) in self.workers(), "the worker in Flower's list")

    def await_state(self, task_id: str, state: str) -> dict[str, str]:
        """Wait for the list to show the state of the only task; return what the task's own page says."""

        def shown() -> bool:
            nonlocal rows
            rows = self.tasks()
            assert [row["UUID"] for row in rows] in ([], [task_id])
            return [row["State"] for row in rows] == [state]

        rows: list[dict[str, str]] = []
        try:
            await_condition(shown, f"{state} in Flower's list")
        except AssertionError as exc:
            raise AssertionError(f"{exc}; it shows {rows}") from None
        details = self.details(task_id)
        assert (details["Name"], details["Status"]) == (rows[0]["Name"], state)
        return details

    def outside(self) -> list[str]:
        """Return the requests to other hosts."""
        return [
            url for url in self.requested if urlsplit(url).scheme != "data" and urlsplit(url).hostname != "127.0.0.1"
        ]


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def flower(on_redis: Cluster, browser: Browser) -> Iterator[Flower]:
    """Flower on the cluster's broker."""
    port = free_port()
    process = on_redis.start("flower", "--address=127.0.0.1", f"--port={port}")
    process.await_log("Visit me at")
    page = browser.new_page()
    flower = Flower(page, f"http://127.0.0.1:{port}")
    yield flower
    page.close()
    assert flower.requested
    assert (flower.outside(), flower.errors) == ([], [])


def node_name(worker: LocalProcess) -> str:
    return f"{worker.id[:12]}@test"


def test_an_interrupted_task_is_one_row_that_tells_where_it_stands(on_redis: Cluster, flower: Flower) -> None:
    first = on_redis.worker("-c", "1", "-E")
    flower.await_worker(first)
    result = on_redis.send("gated", 40, 20)

    running = flower.await_state(result.id, "STARTED")
    assert (running["Name"], running["Worker"]) == ("project.gated", node_name(first))
    assert "Exception" not in running

    on_redis.trace.await_items(20)
    first.kill("SIGTERM")
    first.await_exit()
    interrupted = flower.await_state(result.id, "RETRY")
    assert interrupted["Exception"] == "Interrupted('rows', 20, 'stopping', percent=50)"
    assert "Interrupted at rows:20, 50 % (stopping)" in interrupted["Traceback"]

    second = on_redis.worker("-c", "1", "-E")
    resumed = flower.await_state(result.id, "STARTED")
    assert (resumed["Worker"], resumed["Exception"]) == (node_name(second), interrupted["Exception"])

    on_redis.trace.path.with_name("gate").touch()
    succeeded = flower.await_state(result.id, "SUCCESS")
    assert (succeeded["Worker"], succeeded["Result"]) == (node_name(second), "40")
    assert (succeeded["Retries"], succeeded["Exception"]) == ("0", interrupted["Exception"])
    assert on_redis.trace.items() == list(range(40))


def test_a_task_that_was_interrupted_and_fails_in_the_end(on_redis: Cluster, flower: Flower) -> None:
    worker = on_redis.worker("-c", "1", "-E")
    flower.await_worker(worker)
    result = on_redis.send("stuttering", 1, True)
    failed = flower.await_state(result.id, "FAILURE")
    assert failed["Exception"] == "ContinuationError('failed in the end')"
    assert on_redis.trace.lines("retries"), "it was not interrupted before"


def test_a_task_that_waits_tells_for_what(on_redis: Cluster, flower: Flower) -> None:
    worker = on_redis.worker("-c", "1", "-E")
    flower.await_worker(worker)
    result = on_redis.send("asking_one")
    waiting = flower.await_state(result.id, "RETRY")
    assert waiting["Exception"] == """Interrupted('approval', None, "waiting for 'approval'")"""
    assert "waiting for 'approval'" in waiting["Traceback"]
    result.deliver("approval", "yes")
    succeeded = flower.await_state(result.id, "SUCCESS")
    assert succeeded["Result"] == "'yes'"


def test_a_task_that_is_cancelled_while_it_waits(on_redis: Cluster, flower: Flower) -> None:
    worker = on_redis.worker("-c", "1", "-E")
    flower.await_worker(worker)
    result = on_redis.send("asking_one")
    flower.await_state(result.id, "RETRY")
    result.cancel()
    assert flower.await_state(result.id, "REVOKED")["Name"] == "project.asking_one"
