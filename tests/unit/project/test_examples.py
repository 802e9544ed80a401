"""Each task on a page is resumable: it can be interrupted and killed at any possible place."""

from __future__ import annotations

import ast
import os
import re
import sqlite3
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery
from flask import Flask

from celery_continuations import ContinuableTask
from celery_continuations.testing import assert_resumable, delivered
from tests.support import web

pytestmark = pytest.mark.exhaustive

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"

Names = dict[str, Any]

#: Methods of a task that make a checkpoint: the test proves each function that calls one.
STEPS = {"step", "iterate", "wait_for", "wait_until", "wait_for_results", "sleep", "checkpoint", "resume_in"}

#: How many runs of each example are disturbed twice. Each place is disturbed once in any case.
PAIRS = 20

SECRET = "only a test, of 32 characters or more"

# The example of the project's own contract.
CONTRACT = """
```python
@app.task(base=ContinuableTask, bind=True)
def import_users(self, import_id):
    upload = Upload.objects.get(pk=import_id)            # runs in every execution

    self.step("validate", upload.validate)               # runs once; its return value is remembered

    for rows in self.iterate("import", csv_rows(upload.path), batch=500):    # resumes at the next batch
        upsert_users(rows)                               # a killed worker repeats its last batch

    for user in self.iterate("welcome", User.objects.filter(is_active=True)):    # resumes after the last key
        send_welcome(user, key=self.continuation.key)

    approval = self.wait_for("approval", timeout=timedelta(days=2))    # no worker is held
    self.step("finalize", upload.finalize, approval)
```
"""


@dataclass
class Page:
    """A text with examples.

    Attributes:
        text: its Markdown.
        prepare: adds the reader's own objects to the namespace of the examples.
        then: sets up what they need when they run once more.
        needs_django: whether they use Django's database.
    """

    text: Callable[[], str]
    prepare: Callable[[Names], None] = lambda names: None
    then: Callable[[Names], None] = lambda names: None
    needs_django: bool = False

    def blocks(self) -> list[str]:
        """Return the Python of the page, in its order."""
        found = re.findall(r"^ *```python\n(.*?)^ *```", self.text(), flags=re.M | re.S)
        return [textwrap.dedent(one) for one in found]

    def tasks(self) -> Iterator[str]:
        """Yield the names of the functions that have a step."""
        for block in self.blocks():
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.FunctionDef) and node.args.args:
                    task = node.args.args[0].arg
                    if any(isinstance(one, ast.Call) and _is_step(one.func, task) for one in ast.walk(node)):
                        yield node.name


def _is_step(called: ast.expr, task: str) -> bool:
    if not isinstance(called, ast.Attribute) or called.attr not in STEPS:
        return False
    return isinstance(called.value, ast.Name) and called.value.id == task


def pages_with_tasks(root: Path) -> set[str]:
    """Find the pages under ``docs`` of which an example has a step."""
    found = {str(path.relative_to(root)): Page(path.read_text) for path in sorted((root / "docs").rglob("*.md"))}
    return {name for name, page in found.items() if any(page.tasks())}


def users_of_django(*names: str) -> None:
    from django.contrib.auth.models import User

    User.objects.all().delete()
    User.objects.bulk_create([User(id=number, username=name) for number, name in enumerate(names, 1)])


def of_the_readme(names: Names) -> None:
    from django.contrib.auth.models import User

    keys: dict[str, Any] = {}
    users = SimpleNamespace(objects=SimpleNamespace(filter=lambda **_: User.objects.filter(is_active=True)))
    names.update(
        ContinuableTask=ContinuableTask, timedelta=timedelta, User=users, Subscriber=users, world=keys,
        validate=lambda path: len(Path(path).read_text()),
        upsert_users=lambda rows: keys.update({row["name"]: row for row in rows}),
        send_welcome=lambda user, key: keys.update({key: user.username}),
        send=lambda newsletter, subscriber, key: keys.update({key: (newsletter, subscriber.username)}),
        send_mail=lambda issue: keys.update(asked=issue),
    )  # fmt: skip
    Path("users.csv").write_text("name,age\n" + "".join(f"user{n},{n}\n" for n in range(1200)))


def of_the_contract(names: Names) -> None:
    from celery_continuations.sources import csv_rows

    of_the_readme(names)
    world = names["world"]
    upload = SimpleNamespace(path="users.csv", validate=lambda: 1200, finalize=lambda by: world.update(approved=by))
    names.update(csv_rows=csv_rows, Upload=SimpleNamespace(objects=SimpleNamespace(get=lambda pk: upload)))


def takes_callbacks(names: Names) -> None:
    names["app"].conf.update(continuation_callback_url="https://example.com", continuation_callback_secret=SECRET)


def of_waiting(names: Names) -> None:
    done: dict[str, Any] = {}

    def note(name: str, value: Any) -> Any:
        return lambda *args: done.update({f"{name} {args}": 1}) or value

    names.update(
        world=done, request_payment=lambda order, address: done.update(asked=order), ship=note("ship", "shipped"),
        cancel_order=note("cancel", "cancelled"), send_mail=note("mail", None), start_export=note("start", "job"),
        find_export=lambda job: "a report", photo_ids=lambda album: [1, 2], shrink=lambda photo: 10 * photo,
        fetch=lambda account, page: SimpleNamespace(status_code=200, page=page),
        keep=lambda response: done.update({f"page {response.page}": 1}),
    )  # fmt: skip


def of_testing(names: Names) -> None:
    users: dict[str, Any] = {}
    names.update(users=users, send_report=lambda count: users.update(reported=count))


def of_callbacks(names: Names) -> None:
    asked: list[int] = []
    web.stand_in()
    names.update(
        os=os, flask_app=Flask("web"), api=web.FastAPI(), asked=asked,
        request_payment=lambda order, address: asked.append(order),
    )  # fmt: skip


def of_webhooks(names: Names) -> None:
    takes_callbacks(names)
    done: list[Any] = []
    names.update(
        flask_app=Flask("web"), done=done, charge=lambda order, metadata: done.append(("charged", order)),
        ship=lambda *order: done.append(order),
    )  # fmt: skip


def of_the_index(names: Names) -> None:
    Path("users.csv").write_text("name,email\n" + "".join(f"user{n},user{n}@example.org\n" for n in range(3)))
    names["send_welcome"] = lambda user, key: None


def opens_its_database(names: Names) -> None:
    names["db"] = sqlite3.connect("users.db")


PAGES: dict[str, Page] = {
    "the contract": Page(lambda: CONTRACT, of_the_contract, needs_django=True),
    "README.md": Page((ROOT / "README.md").read_text, of_the_readme, needs_django=True),
    "docs/waiting.md": Page((DOCS / "waiting.md").read_text, of_waiting, takes_callbacks),
    "docs/sources.md": Page((DOCS / "sources.md").read_text, needs_django=True),
    **{
        f"docs/{name}": Page((DOCS / name).read_text)
        for name in ("how-it-works.md", "quickstart.md", "writing-a-source.md", "howto/callback.md",
                     "howto/coming-from-rails.md", "howto/deploys.md", "howto/migrating.md",
                     "reference/settings.md", "steering.md", "writing-tasks.md")
    },
    "docs/index.md": Page((DOCS / "index.md").read_text, then=of_the_index, needs_django=True),
    "docs/callbacks.md": Page((DOCS / "callbacks.md").read_text, of_callbacks),
    "docs/howto/webhooks.md": Page((DOCS / "howto/webhooks.md").read_text, of_webhooks),
    "docs/django.md": Page((DOCS / "django.md").read_text, needs_django=True),
    "docs/testing.md": Page((DOCS / "testing.md").read_text, of_testing, needs_django=True),
    "docs/transactions.md": Page((DOCS / "transactions.md").read_text, needs_django=True),
    "docs/howto/long-imports.md": Page((DOCS / "howto/long-imports.md").read_text, then=opens_its_database),
}  # fmt: skip


def distinct(found: Any) -> list[str]:
    """Return the distinct work done: a kill may repeat work that was not saved."""
    return sorted(set(map(str, found)))


@dataclass
class Example:
    """How a task is proven.

    Attributes:
        args: of the task.
        world: the name of the list or dict in which it leaves what it does, emptied before each run.
        check: what to compare, if not the distinct entries of the world.
        setup: called before each run.
        delivers: to its waits.
    """

    args: tuple[Any, ...] = ()
    world: str = "seen"
    check: Callable[[Names], Any] | None = None
    setup: Callable[[Names], Any] | None = None
    delivers: dict[str, Any] = field(default_factory=dict)

    def prove(self, task: Any, names: Names) -> None:
        def setup() -> None:
            names[self.world].clear() if self.world else None
            if self.setup is not None:
                self.setup(names)

        def check() -> Any:
            if self.check is not None:
                return self.check(names)
            world = names[self.world]
            return dict(world) if isinstance(world, dict) else distinct(world)

        setup()
        with delivered(**self.delivers):
            assert_resumable(task, *self.args, setup=setup, check=check, pairs=PAIRS)
        assert check(), "the example did nothing"


def sql(query: str, path: str) -> Any:
    with closing(sqlite3.connect(path)) as db, db:
        return db.execute(query).fetchall()


def _of_long_imports(*args: Any) -> Example:
    return Example(
        args, world="",
        setup=lambda names: sql("DELETE FROM users", "users.db"),
        check=lambda names: sql("SELECT * FROM users ORDER BY id", "users.db"),
    )  # fmt: skip


def accounts_of_two(names: Names) -> None:
    with names["Session"](names["engine"]) as session, session.begin():
        session.execute(names["accounts"].delete())
        session.execute(names["accounts"].insert(), [{"name": "ann", "balance": 100}, {"name": "bob", "balance": 50}])


def balances(names: Names) -> Any:
    with names["Session"](names["engine"]) as session:
        return [tuple(row) for row in session.execute(names["select"](names["accounts"]))]


def rows_of_django(names: Names) -> Any:
    return list(names["User"].objects.order_by("pk").values("id", "username", "is_active"))


PROOFS: dict[tuple[str, str], Example] = {
    ("the contract", "import_users"): Example((7,), "world", delivers={"approval": "ann"}),
    ("README.md", "import_users"): Example(("users.csv",), "world"),
    ("README.md", "send_newsletter"): Example((7,), "world"),
    ("README.md", "publish"): Example((7,), "world", delivers={"approval": {"by": "ann"}}),
    ("docs/waiting.md", "fulfil"): Example((1,), "world", delivers={"payment": {"id": "pay_7"}}),
    ("docs/waiting.md", "welcome"): Example((1,), "world"),
    ("docs/waiting.md", "export"): Example((1,), "world"),
    ("docs/waiting.md", "fetch_orders"): Example((1,), "world"),
    ("docs/waiting.md", "publish_album"): Example((1,), "", check=lambda names: "what it returns"),
    ("docs/quickstart.md", "count"): Example((3, 0), "", check=lambda names: "what it returns"),
    ("docs/how-it-works.md", "import_all"): Example((), "order"),
    ("docs/index.md", "import_users"): Example(
        ("users.csv",),
        "",
        check=lambda names: sorted(names["User"].objects.values_list("username", "email")),
        setup=lambda names: users_of_django(),
    ),
    ("docs/reference/settings.md", "export"): Example((), "", check=lambda names: "what it prints"),
    ("docs/steering.md", "send_newsletter"): Example((["ann", "bob"],), "sent"),
    ("docs/writing-tasks.md", "import_names"): Example((["ann", "bob"],), "done"),
    ("docs/writing-tasks.md", "count_letters"): Example((["ann", "bobby"],), "", check=lambda names: "what it returns"),
    ("docs/writing-tasks.md", "import_in_batches"): Example((["ann", "bob", "eve"],), "done"),
    ("docs/writing-tasks.md", "report_price"): Example(("ann",), "done"),
    ("docs/writing-tasks.md", "longest_name"): Example((["ann", "bobby"],), "", check=lambda names: "what it returns"),
    ("docs/writing-tasks.md", "total_length"): Example(
        (["ann", "bobby", "eve"],), "", check=lambda names: "what it returns"
    ),
    ("docs/callbacks.md", "fulfil"): Example((1,), "asked"),
    ("docs/testing.md", "import_users"): Example((["ann@example.org", "bob@example.org"],), "users"),
    ("docs/testing.md", "invoice"): Example(
        (7,), "", check=lambda names: "what it returns", delivers={"payment": {"id": "pay_7"}}
    ),
    ("docs/testing.md", "register"): Example(
        (["ann", "bob"],),
        "",
        check=lambda names: names["User"].objects.order_by("pk"),
        setup=lambda names: users_of_django(),
    ),
    ("docs/django.md", "deactivate"): Example(
        (), "", check=rows_of_django, setup=lambda names: users_of_django("ann", "bob")
    ),
    ("docs/transactions.md", "pay_interest"): Example((["ann", "bob"],), "", check=balances, setup=accounts_of_two),
    ("docs/transactions.md", "rename"): Example(
        (), "", check=rows_of_django, setup=lambda names: users_of_django("ann", "bob")
    ),
    ("docs/sources.md", "import_names"): Example(),
    ("docs/sources.md", "export_prices"): Example(),
    ("docs/sources.md", "bill"): Example(),
    ("docs/sources.md", "mail_users"): Example(),
    ("docs/sources.md", "import_report"): Example(),
    ("docs/sources.md", "import_packed"): Example(),
    ("docs/sources.md", "greet_users"): Example(),
    ("docs/sources.md", "read_poems"): Example(),
    ("docs/sources.md", "remind"): Example(),
    ("docs/sources.md", "copy"): Example(),
    ("docs/sources.md", "parse"): Example((["1", "two", "3"],)),
    ("docs/sources.md", "load_values"): Example(),
    ("docs/sources.md", "archive_users"): Example(),
    ("docs/writing-a-source.md", "launch"): Example(),
    ("docs/writing-a-source.md", "prepare"): Example(),
    ("docs/writing-a-source.md", "list_primes"): Example(),
    ("docs/writing-a-source.md", "ignite"): Example((2,)),
    ("docs/howto/callback.md", "fulfil"): Example(
        (1,), "asked", check=lambda names: bool(names["asked"]), delivers={"payment": {"by": "ann"}}
    ),
    ("docs/howto/webhooks.md", "fulfil"): Example((1,), "done", delivers={"payment": {"id": "pi_1"}}),
    ("docs/howto/coming-from-rails.md", "reindex"): Example((3,), "done"),
    ("docs/howto/coming-from-rails.md", "export"): Example((["ann", "bob"],), "log"),
    ("docs/howto/deploys.md", "import_users"): Example((["ann", "bob"],), "done"),
    ("docs/howto/deploys.md", "publish"): Example((7,), "done"),
    ("docs/howto/long-imports.md", "import_users"): _of_long_imports("few.csv"),
    ("docs/howto/long-imports.md", "import_what_is_right"): _of_long_imports("wrong.csv"),
    ("docs/howto/long-imports.md", "import_gently"): _of_long_imports("few.csv"),
    ("docs/howto/migrating.md", "newsletter"): Example((["ann", "bob"],), "sent"),
}

#: Examples that cannot be proven, and why.
UNPROVEN: dict[tuple[str, str], str] = {
    ("docs/writing-tasks.md", "import_wrongly"): "it shows what loses rows: the test below",
    ("docs/sources.md", "import_set"): "it shows what is refused",
    ("docs/steering.md", "run"): "it shows what is called at a cancellation",
    ("docs/sources.md", "send"): "it fails on purpose, and its page shows how",
    ("docs/transactions.md", "rename_all_at_once"): "it shows what is refused: a checkpoint in an open transaction",
    ("docs/howto/deploys.md", "import_users_before"): "the page proves it, by test_the_upgrade",
}

SHOWN = [(page, task) for page, one in PAGES.items() for task in one.tasks()]


def test_each_page_whose_examples_have_a_step_is_looked_at() -> None:
    assert pages_with_tasks(ROOT) - set(PAGES) == set()


def test_a_page_that_is_not_listed_is_found(tmp_path: Path) -> None:
    shown = {
        "docs/bare.md": "A step: `self.step()`.\n\n```python\ndef run(self):\n    self.steps()\n```\n",
        "docs/new.md": '```python\ndef run(self):\n    self.step("one", print)\n```\n',
        "docs/howto/list.md": '- Do:\n\n  ```python\n  def run(task):\n      for _ in task.iterate("n", [1]):\n'
                              "          pass\n  ```\n",
    }  # fmt: skip
    for name, text in shown.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert pages_with_tasks(tmp_path) == {"docs/new.md", "docs/howto/list.md"}


def test_each_example_is_proven_or_says_why_not() -> None:
    assert len(SHOWN) == len(set(SHOWN)), "a page has two tasks of one name"
    assert set(SHOWN) == set(PROOFS) | set(UNPROVEN)
    assert not set(PROOFS) & set(UNPROVEN)


@pytest.mark.usefixtures("own_tasks")
@pytest.mark.parametrize("page", [page for page in PAGES if any(shown[0] == page for shown in SHOWN)])
def test_the_examples_of_a_page_are_resumable(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    app = Celery("page", broker="memory://", set_as_current=False)
    names: Names = {"__name__": f"examples.{tmp_path.name}", "app": app, "ContinuableTask": ContinuableTask}
    monkeypatch.setenv("CALLBACK_SECRET", SECRET)
    monkeypatch.setitem(sys.modules, "proj", SimpleNamespace(app=app))
    if PAGES[page].needs_django:
        request.getfixturevalue("django_database")
    PAGES[page].prepare(names)
    for block in PAGES[page].blocks():
        if "# WRONG" not in block and "upgrade_from" not in block and "task_id" not in block:
            exec(compile(block, page, "exec", dont_inherit=True), names)
    PAGES[page].then(names)
    if PAGES[page].needs_django:
        users_of_django("ann", "bob", "eve")
    for (shown_on, task), example in PROOFS.items():
        if shown_on == page:
            example.prove(names[task], names)
    for engine in (value for value in names.values() if isinstance(value, sa.Engine)):
        engine.dispose()


@pytest.mark.usefixtures("own_tasks")
def test_rows_collected_in_a_list_are_lost() -> None:
    names: Names = {"__name__": "examples.wrong"}
    for block in Page((DOCS / "writing-tasks.md").read_text).blocks():
        exec(compile(block, "writing-tasks.md", "exec", dont_inherit=True), names)
    with pytest.raises(AssertionError, match="import_wrongly is not resumable: interrupted"):
        Example((["ann", "bob", "eve"],), "done").prove(names["import_wrongly"], names)
