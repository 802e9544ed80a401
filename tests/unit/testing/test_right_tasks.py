"""Twenty-odd tasks as real projects have them, all right: assert_resumable raises no alarm."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pydantic
import pytest
import sqlalchemy as sa
from celery import Celery, chain, group
from django.contrib.auth.models import Group, User
from django.db import models, transaction
from sqlalchemy import orm

from celery_continuations import ContinuableTask
from celery_continuations.sources import csv_rows, keyed, nested, pages, throttled
from celery_continuations.testing import assert_resumable, delivered

pytestmark = pytest.mark.exhaustive


@dataclass
class World:
    """Fakes of the services that tasks use; each call may be repeated."""

    mails: dict[str, Any] = field(default_factory=dict)
    table: dict[Any, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    payments: dict[str, Decimal] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        for part in vars(self).values():
            part.clear()

    def send(self, to: str, text: str, key: str) -> None:
        self.mails[key] = (to, text)

    def outcome(self) -> Any:
        return {name: part for name, part in vars(self).items() if name != "calls"}


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def right(task: Any, world: World) -> Callable[..., None]:
    """Assert that a function, as a task, is right, whatever is tried."""

    def right(function: Any, *args: Any, settings: Any = None, **options: Any) -> None:
        made = task(function, name=function.__name__, **(settings or {}))
        report = assert_resumable(
            made, *args, **{"setup": world.clear, "check": world.outcome, "seconds": None, **options}
        )
        assert report.tried
        assert report.left_out == ()

    return right


def test_newsletter(right: Any, world: World) -> None:
    def newsletter(self: Any, subject: str) -> int:
        subscribers = [{"id": number, "email": f"{number}@example.org"} for number in range(6)]
        for subscriber in self.iterate("send", subscribers):
            world.send(subscriber["email"], subject, key=self.continuation.key)
        return len(subscribers)

    right(newsletter, "Hello")


def test_csv_import(right: Any, world: World, tmp_path: Path) -> None:
    path = tmp_path / "users.csv"
    path.write_text("email,name\n" + "".join(f"{number}@example.org,{number}\n" for number in range(7)))

    def load(self: Any, name: str) -> None:
        self.step("validate", lambda: Path(name).stat().st_size)
        for rows in self.iterate("import", csv_rows(name), batch=3):
            world.table.update({row["email"]: row for row in rows})
        self.step("finalize", world.table.__setitem__, "total", 7)

    right(load, str(path))


def test_order_workflow(right: Any, world: World) -> None:
    def order(self: Any, number: int) -> str:
        key = self.continuation.key
        charged = self.step("charge", lambda: world.payments.setdefault(key, Decimal("9.90")))
        paid = self.wait_for("payment", timeout=timedelta(days=14))
        self.step("invoice", world.send, "ann@example.org", f"{number}: {charged} {paid}", f"invoice {number}")
        self.sleep("delivery", timedelta(days=2))
        self.step("ship", world.table.__setitem__, number, "shipped")
        return f"order {number}"

    with delivered(payment={"id": "pay_7"}):
        right(order, 7)


def test_export_by_pages(right: Any, world: World) -> None:
    pages_of = {None: (["a", "b"], 2), 2: (["c"], 3), 3: ([], 4), 4: (["d", "e"], None)}

    def export(self: Any) -> int:
        rows = self.iterate("fetch", pages(lambda token: pages_of[token]))
        for place, row in enumerate(rows):
            world.files[f"part-{row}"] = f"{row}\n"
            del place
        text = self.step("join", lambda: "".join(world.files[name] for name in sorted(world.files)))
        return len(text)

    right(export)


def test_cleanup_in_pages(right: Any, django_database: Any) -> None:
    def cleanup(self: Any, before: str) -> int:
        stale = User.objects.filter(date_joined__lt=datetime.fromisoformat(before))
        for users in self.iterate("delete", stale, batch=2):
            User.objects.filter(pk__in=[user.pk for user in users]).delete()
        return User.objects.count()

    def setup() -> None:
        User.objects.all().delete()
        for number in range(7):
            joined = datetime(2020 + number, 1, 1, tzinfo=timezone.utc)
            User.objects.create(username=str(number), date_joined=joined)

    right(cleanup, "2024-06-01T00:00:00+00:00", setup=setup, check=lambda: User.objects.order_by("username"))


def test_sync_of_an_api_with_page_tokens(right: Any, world: World) -> None:
    class Client:
        def contacts(self, token: str | None) -> dict[str, Any]:
            world.calls["contacts"] += 1
            first = int(token or 0)
            contacts = [{"id": number, "name": str(number), "seen": world.calls["contacts"]} for number in range(9)]
            return {"items": contacts[first : first + 4], "next": str(first + 4) if first < 8 else None}

    client = Client()

    def fetch(token: str | None) -> tuple[list[Any], str | None]:
        page = client.contacts(token)
        return page["items"], page["next"]

    def sync(self: Any) -> None:
        for contact in self.iterate("contacts", pages(fetch)):
            world.table[contact["id"]] = contact["name"]

    right(sync)


def test_report_fan_out(right: Any, world: World, app: Celery) -> None:
    @app.task(name="region")
    def region(name: str, year: int) -> dict[str, Any]:
        world.calls["region"] += 1
        return {"region": name, "total": len(name) * year}

    def report(self: Any, year: int) -> int:
        found = self.wait_for_results("regions", group(region.s(name, year) for name in ("north", "south")))
        for row in self.iterate("write", found):
            world.table[row["region"]] = row["total"]
        return int(sum(row["total"] for row in found))

    right(report, 2024)


def test_approval(right: Any, world: World) -> None:
    def publish(self: Any, article: int) -> str:
        self.step("ask", world.send, "boss@example.org", str(article), f"ask {article}")
        answer = self.wait_for("approval", timeout=timedelta(hours=48), default={"by": None})
        if answer["by"] is None:
            return "expired"
        self.step("publish", world.table.__setitem__, article, answer["by"])
        return "published"

    with delivered(approval={"by": "ann"}):
        right(publish, 3)
    right(publish, 3)


def test_polling(right: Any, world: World) -> None:
    def transcode(self: Any, video: str) -> str:
        job = self.step("start", lambda: f"job of {video}")

        def finished() -> str | None:
            world.calls[job] += 1
            return f"{video}.mp4" if world.calls[job] >= 3 else None

        url = self.wait_until("finished", finished, every=30, timeout=3600)
        self.step("save", world.files.__setitem__, video, url)
        return str(url)

    right(transcode, "cats")


def test_drip_campaign(right: Any, world: World) -> None:
    def drip(self: Any, user: str) -> int:
        for number, days in enumerate((0, 3, 7)):
            self.sleep(f"wait {number}", timedelta(days=days))
            self.step(f"mail {number}", world.send, user, f"mail {number}", f"{user} {number}")
        return 3

    right(drip, "ann")


def test_thumbnails(right: Any, world: World) -> None:
    def thumbnails(self: Any, album: int, sizes: list[int]) -> None:
        images = [f"{album}/{number}.jpg" for number in range(3)]
        for image, size in self.iterate("resize", nested(images, lambda image: sizes)):
            world.files[f"{image}@{size}"] = f"{image} at {size}"

    right(thumbnails, 5, [100, 200])


def test_reindex(right: Any, world: World, django_database: Any) -> None:
    User.objects.bulk_create(User(username=f"user {number:02}") for number in range(10))

    def reindex(self: Any, model: str = "user") -> int:
        self.step("create", world.table.__setitem__, "index", {})
        count = 0
        for users in self.iterate("index", User.objects.order_by("pk"), batch=4, total="count"):
            world.table.update({user.pk: user.username for user in users})
        self.step("swap", world.table.__setitem__, "alias", model)
        return len(world.table) + count

    right(reindex)


def test_ledger_in_one_transaction(right: Any, django_database: Any) -> None:
    def add_interest(self: Any) -> None:
        for account in self.iterate("accounts", User.objects.order_by("pk"), transaction="default"):
            User.objects.filter(pk=account.pk).update(last_name=models.F("first_name"), first_name=account.pk + 1)
            Group.objects.create(name=f"entry {Group.objects.count()} of {account.pk}")

    def setup() -> None:
        Group.objects.all().delete()
        User.objects.all().delete()
        User.objects.bulk_create(User(pk=number, username=str(number), first_name="1") for number in range(1, 5))

    def check() -> Any:
        return {
            "users": User.objects.order_by("pk").values("pk", "first_name", "last_name"),
            "entries": Group.objects.order_by("pk").values_list("name"),
        }

    right(add_interest, setup=setup, check=check)


class Base(orm.DeclarativeBase):
    pass


class Entry(Base):
    __tablename__ = "entry"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    account: orm.Mapped[int]
    at: orm.Mapped[datetime] = orm.mapped_column(default=lambda: datetime.now(timezone.utc))


def test_ledger_of_a_session(right: Any, tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/db")
    Base.metadata.create_all(engine)

    def post(self: Any, accounts: list[int]) -> None:
        with orm.Session(engine) as session:
            for account in self.iterate("accounts", accounts, transaction=session):
                session.add(Entry(account=account))

    def setup() -> None:
        with orm.Session(engine) as session, session.begin():
            session.execute(sa.delete(Entry))

    def check() -> Any:
        with orm.Session(engine) as session:
            return session.scalars(sa.select(Entry).order_by(Entry.id)).all()

    right(post, [3, 1, 2], setup=setup, check=check)
    engine.dispose()


def test_retrying(right: Any, world: World) -> None:
    def push(self: Any, names: list[str]) -> None:
        for name in self.iterate("push", names):
            world.calls[name] += 1
            if name == "b" and world.calls[name] < 3:
                raise ConnectionError("again")
            world.table[name] = "pushed"

    right(push, ["a", "b", "c"], settings={"autoretry_for": (ConnectionError,), "max_retries": 5})


def test_retrying_by_hand(right: Any, world: World) -> None:
    def push(self: Any, names: list[str]) -> None:
        for name in self.iterate("push", names):
            world.calls[name] += 1
            if name == "b" and world.calls[name] == 1:
                raise self.retry(countdown=30)
            world.table[name] = "pushed"

    right(push, ["a", "b", "c"])


def test_a_member_of_a_chain(right: Any, world: World, app: Celery) -> None:
    @app.task(name="after")
    def after(total: int) -> int:
        world.calls["after"] += 1
        return total

    def first(self: Any, numbers: list[int]) -> int:
        for number in self.iterate("add", numbers):
            world.table[number] = number * 2
        return sum(world.table.values())

    app.conf.task_always_eager = True
    right(first, [1, 2, 3])
    result = chain(app.tasks["first"].s([1, 2]), after.s()).apply()
    assert result.get() > 0


def test_arguments_of_pydantic(right: Any, world: World) -> None:
    class Order(pydantic.BaseModel):
        number: int
        lines: list[str]

    def fulfil(self: Any, order: Order, *, urgent: bool = False) -> dict[str, Any]:
        for line in self.iterate("lines", order.lines):
            world.table[order.number, line] = urgent
        return order.model_dump()

    fulfil.__annotations__ = {"order": Order, "urgent": bool}
    right(fulfil, {"number": 7, "lines": ["a", "b"]}, kwargs={"urgent": True}, settings={"pydantic": True})


def test_with_a_countdown(right: Any, world: World) -> None:
    def remind(self: Any, users: list[str]) -> None:
        for user in self.iterate("remind", users):
            world.table[user] = "reminded"
            if user == "bob" and self.saved.setdefault("paused", "") != user:
                self.saved["paused"] = user
                self.resume_in(timedelta(minutes=10))

    right(remind, ["ann", "bob", "eve"], settings={"continuation_resume_options": {"countdown": 5}})


def test_nested_loops(right: Any, world: World) -> None:
    def matrix(self: Any, rows: int) -> int:
        for row, column, cell in self.iterate(
            "cells", nested(range(rows), lambda row: range(2), lambda row, column: ["x", "y"])
        ):
            world.table[row, column, cell] = row * column
        return len(world.table)

    right(matrix, 2)


def test_an_error_budget(right: Any, world: World) -> None:
    def parse(self: Any, texts: list[str]) -> list[Any]:
        rows = self.iterate("parse", texts, on_error=3)
        for text in rows:
            with rows.attempt():
                world.table[text] = int(text)
        return [error for _, error in rows.failed]

    right(parse, ["1", "two", "3", "four"])


def test_map_reduce(right: Any, world: World) -> None:
    def count_words(self: Any, texts: list[str]) -> dict[str, int]:
        self.saved.setdefault("counts", {})
        for step in self.step("map", start=0):
            while step.cursor < len(texts):
                words = Counter(texts[step.cursor].split())
                self.saved["counts"] = {**self.saved["counts"], str(step.cursor): dict(words)}
                step.advance()
        totals: Counter[str] = Counter()
        for counted in self.saved["counts"].values():
            totals.update(counted)
        self.step("write", world.table.update, dict(totals))
        return dict(totals)

    right(count_words, ["a b a", "b c", ""])


def test_throttled(right: Any, world: World) -> None:
    def crawl(self: Any, urls: list[str]) -> None:
        def is_busy() -> bool:
            world.calls["asked"] += 1
            return world.calls["asked"] % 3 == 0

        for url in self.iterate("fetch", throttled(urls, is_busy, backoff=60)):
            world.files[url] = f"content of {url}"

    right(crawl, ["a", "b", "c", "d"])


def test_rows_in_the_order_of_a_key(right: Any, world: World) -> None:
    text = "id,name\n" + "".join(f"{number * 10},name {number}\n" for number in range(5))

    def load(self: Any) -> None:
        rows = csv.DictReader(io.StringIO(text))
        for row in self.iterate("rows", keyed(rows, key="id")):
            world.table[row["id"]] = row["name"]

    right(load)


def test_days(right: Any, world: World) -> None:
    def backfill(self: Any, since: str, until: str) -> int:
        for step in self.step("days", start=date.fromisoformat(since)):
            while step.cursor <= date.fromisoformat(until):
                world.table[step.cursor.isoformat()] = "filled"
                step.advance()
        return len(world.table)

    right(backfill, "2024-02-27", "2024-03-02")


def test_one_call(right: Any, world: World) -> None:
    def rebuild(self: Any) -> str:
        return str(self.step("rebuild", lambda: world.files.setdefault("index", "rebuilt")))

    right(rebuild)


def test_one_call_that_is_never_killed(task: Any) -> None:
    """There is nothing to try: no checkpoint comes after the last step."""

    def charge(self: Any) -> int:
        return int(self.step("charge", lambda: 7))

    assert assert_resumable(task(charge), kills=False) == ((), ())


def test_values_that_are_new_in_each_run(right: Any, world: World) -> None:
    def import_rows(self: Any, count: int) -> dict[str, Any]:
        began = self.step("began", lambda: datetime.now(timezone.utc))
        for number in self.iterate("rows", range(count)):
            world.table[number] = "row"
        return {"count": count, "seconds": (datetime.now(timezone.utc) - began).total_seconds()}

    right(import_rows, 3, returned=lambda value: value["count"])
    right(import_rows, 3, returned=None)


def test_context_managers_of_the_body(right: Any, world: World) -> None:
    @contextmanager
    def locked(name: str) -> Iterator[None]:
        assert name not in world.calls
        world.calls[name] = 1
        try:
            yield
        finally:
            del world.calls[name]

    def work(self: Any) -> None:
        with locked("account"):
            for number in self.iterate("rows", range(4)):
                world.table[number] = True

    right(work)


def test_hooks_after_the_commit(right: Any, world: World, django_database: Any) -> None:
    def promote(self: Any) -> None:
        for user in self.iterate("users", User.objects.order_by("pk"), transaction="default"):
            User.objects.filter(pk=user.pk).update(is_staff=True)
            transaction.on_commit(lambda name=user.username: world.send(name, "promoted", key=name))

    def setup() -> None:
        world.clear()
        User.objects.all().delete()
        User.objects.bulk_create(User(username=name) for name in ("ann", "bob", "eve"))

    right(promote, setup=setup, check=lambda: [User.objects.order_by("pk").values("is_staff"), world.outcome()])


def test_a_client_made_when_it_is_first_used(right: Any, world: World) -> None:
    class Connection:
        def __init__(self) -> None:
            self.is_open = True

    class Database(ContinuableTask):
        abstract = True
        _connection: Connection | None = None

        @property
        def connection(self) -> Connection:
            if self._connection is None:
                self._connection = Connection()
            return self._connection

    def use(self: Any) -> None:
        for number in self.iterate("rows", range(3)):
            assert self.connection.is_open
            world.table[number] = True

    right(use, settings={"base": Database})
