"""Each mistake in the table of docs/testing.md is found in a task that has just this one."""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from django.contrib.auth.models import Group
from django.db import transaction

from celery_continuations import CheckpointError, ContinuableTask, continuable
from celery_continuations.testing import assert_resumable, interrupt_during_step, run_until_done
from celery_continuations.testing.process_state import ProcessState, Used

PAGE = Path(__file__).parents[3] / "docs" / "testing.md"
TABLE = re.search(r"^\| mistake .*\n\|[-|]*\n((?:\|.*\n)+)", PAGE.read_text(), flags=re.M)
assert TABLE
ROWS = [row.split("|")[1].strip() for row in TABLE[1].splitlines()]

USERS = ["ann", "bob", "eve", "kim"]


class World:
    """What tasks change."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.table: dict[Any, Any] = {}
        self.rows: list[Any] = []
        self.calls: Counter[Any] = Counter()

    def state(self) -> Any:
        return {"table": self.table, "rows": self.rows}


# -- the mistakes of the table


def cursor_before_the_work(self: Any, world: World) -> None:
    for step in self.step("mails", start=0):
        while step.cursor < len(USERS):
            user = USERS[step.cursor]
            step.advance()
            world.table[user] = "sent"


def cursor_too_far(self: Any, world: World) -> None:
    for step in self.step("mails", start=0):
        for number in range(step.cursor, len(USERS)):
            world.table[USERS[number]] = "sent"
            step.set(number + 2)


def rows_in_a_local_variable(self: Any, world: World) -> None:
    names = []
    for user in self.iterate("users", USERS):
        names.append(user.upper())
    world.table["names"] = names


def rows_on_self(self: Any, world: World) -> None:
    for user in self.iterate("users", USERS):
        self.names = [*getattr(self, "names", []), user]
    world.table["names"] = sorted(set(self.names))


def work_between_two_steps(self: Any, world: World) -> None:
    self.step("first", lambda: 1)
    world.rows.append("mail")
    self.step("second", lambda: 2)


def an_item_that_cannot_be_repeated(self: Any, world: World) -> None:
    for user in self.iterate("users", USERS):
        world.rows.append(user)


def a_step_that_cannot_be_repeated(self: Any, world: World) -> None:
    self.step("charge", world.rows.append, "charged")


def an_error_in_a_resumed_run(self: Any, world: World) -> None:
    for user in self.iterate("users", USERS):
        first = user if user == USERS[0] else first  # noqa: F821
        world.table[user] = first


def items_that_differ(self: Any, world: World) -> None:
    for user in self.iterate("users", [user for user in USERS if user not in world.table]):
        world.table[user] = "done"


def arguments_changed_in_place(self: Any, world: World, users: list[str]) -> None:
    for step in self.step("users", start=0):
        while users:
            world.rows.append(users.pop())
            step.advance()


def a_transient_error(self: Any, world: World) -> None:
    for user in self.iterate("users", USERS):
        world.calls[user] += 1
        if user == "bob" and world.calls[user] == 1:
            raise ConnectionError
        world.table[user] = "done"


def a_checkpoint_in_a_transaction(self: Any, world: World) -> None:
    with transaction.atomic():
        for user in self.iterate("users", USERS):
            Group.objects.update_or_create(name=user)


def steps_by_chance(self: Any, world: World) -> None:
    world.calls["executions"] += 1
    names = ("first", "second") if world.calls["executions"] % 2 else ("second", "first")
    for name in names:
        self.step(name, lambda: 1)


#: For each row of the table: what shows, the tasks with the mistake, and the options of assert_resumable.
MISTAKES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "the cursor is moved before the work, or is off by one": (
        "interrupted at place", [cursor_before_the_work, cursor_too_far], {},
    ),
    "rows are collected in a local variable, on `self`, on its class, or in a module variable": (
        "interrupted at place 1 ", [rows_in_a_local_variable, rows_on_self], {},
    ),
    "work between two steps": ("interrupted at place 2 of 4, the checkpoint after step", [work_between_two_steps], {}),
    "an item or a step that cannot be repeated": (
        "killed at place 1 ", [an_item_that_cannot_be_repeated, a_step_that_cannot_be_repeated], {},
    ),
    "an error that occurs only in a resumed run": (
        "(?s)interrupted at place 1 .* it raises UnboundLocalError", [an_error_in_a_resumed_run], {},
    ),
    "a loop by position whose items differ in each execution": (
        "(?s)interrupted at place 1 .* it raises SourceChangedError", [items_that_differ], {},
    ),
    "arguments that are changed in place": (
        "interrupted at place", [arguments_changed_in_place], {"args": (USERS,), "kills": False},
    ),
    "a transient error without `autoretry_for` or `self.retry()`": (
        "(?s)interrupted at place 1 .* it raises ConnectionError", [a_transient_error], {},
    ),
    "a checkpoint inside an open transaction": ("Django connection", [a_checkpoint_in_a_transaction], {}),
    "steps whose order or number depends on chance or time": (
        "(?s)interrupted .* InvalidStepError", [steps_by_chance], {},
    ),
}  # fmt: skip


@pytest.fixture
def world() -> World:
    return World()


def prove(task: Any, function: Any, world: World, **options: Any) -> None:
    def body(self: Any, *args: Any) -> Any:
        return function(self, world, *args)

    args = options.pop("args", ())
    name = function.__name__
    assert_resumable(task(body, name=name), *args, **{"check": world.state, "setup": world.clear, **options})


def test_the_table_is_complete() -> None:
    assert list(MISTAKES) == ROWS


@pytest.mark.parametrize(
    ("shows", "function", "options"),
    [(shows, one, options) for shows, functions, options in MISTAKES.values() for one in functions],
    ids=[one.__name__ for _, functions, _ in MISTAKES.values() for one in functions],
)
def test_it_is_found(
    task: Any, world: World, django_database: Any, shows: str, function: Any, options: dict[str, Any]
) -> None:
    error = CheckpointError if function is a_checkpoint_in_a_transaction else AssertionError
    with pytest.raises(error, match=shows):
        prove(task, function, world, **options)


# -- what a process keeps, however it was made


class Buffer:
    """An object of the program."""

    limit = 100

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.count = 0

    def add(self, row: Any) -> None:
        self.rows.append(row)
        self.count += 1


class Base(ContinuableTask):
    """Tasks with state of all kinds."""

    abstract = True
    on_class: list[Any] = []
    dict_on_class: dict[str, list[Any]] = {"rows": []}
    object_on_class = Buffer()
    number = 0

    def __init__(self) -> None:
        self.own: list[Any] = []
        self.own_set: set[Any] = set()
        self.own_dict: dict[str, list[Any]] = defaultdict(list)
        self.own_deque: deque[Any] = deque()
        self.own_bytes = bytearray()
        self.own_object = Buffer()
        self.nested = ({"rows": [self.own_object]},)


VARIABLE: list[Any] = []
CACHE: dict[Any, Any] = {}
BUFFERS = [Buffer()]
NUMBER = 0


def keep_in_variable(row: Any) -> None:
    VARIABLE.append(row)


def number_of(row: Any) -> int:
    global NUMBER
    NUMBER += 1
    return NUMBER


def use_class_number(self: Any, row: Any) -> int:
    Base.number += 1
    return Base.number


def use_number(self: Any, row: Any) -> int:
    global NUMBER
    NUMBER += 1
    return NUMBER


def use_cache(self: Any, row: Any) -> int:
    CACHE.setdefault(self.request.id, []).append(row)
    return len(CACHE[self.request.id])


def use_default(self: Any, row: Any, rows: list[Any] = []) -> int:  # noqa: B006
    rows.append(row)
    return len(rows)


def use_own_attribute(self: Any, row: Any) -> int:
    rows: list[Any] = vars(use_own_attribute).setdefault("rows", [])
    rows.append(row)
    return len(rows)


def grow(container: Any, row: Any) -> int:
    """Add to a container, and return how much it has."""
    if isinstance(container, set):
        container.add(row)
    elif isinstance(container, Buffer):
        container.add(row)
        return container.count
    elif isinstance(container, bytearray):
        container.extend(row.encode()[:1])
    else:
        container.append(row)
    return len(container)


STATE: dict[str, Callable[[Any, Any], int]] = {
    "set on self": lambda self, row: setattr(self, "n", getattr(self, "n", 0) + 1) or self.n,
    "list of __init__": lambda self, row: grow(self.own, row),
    "set of __init__": lambda self, row: grow(self.own_set, row),
    "dict of __init__": lambda self, row: grow(self.own_dict["rows"], row),
    "deque of __init__": lambda self, row: grow(self.own_deque, row),
    "bytes of __init__": lambda self, row: grow(self.own_bytes, row),
    "object of __init__": lambda self, row: grow(self.own_object, row),
    "object in containers": lambda self, row: grow(self.nested[0]["rows"][0].rows, row),
    "list of the class": lambda self, row: grow(self.on_class, row),
    "dict of the class": lambda self, row: grow(self.dict_on_class["rows"], row),
    "object of the class": lambda self, row: grow(self.object_on_class, row),
    "number of the class": use_class_number,
    "default value": use_default,
    "attribute of a function": use_own_attribute,
    "module list": lambda self, row: grow(VARIABLE, row),
    "module list, by a function": lambda self, row: keep_in_variable(row) or len(VARIABLE),
    "module dict": use_cache,
    "module list of objects": lambda self, row: grow(BUFFERS[0], row),
    "module number": use_number,
    "module number, by a function": lambda self, row: number_of(row),
}


@pytest.mark.parametrize("kind", STATE)
@pytest.mark.parametrize("kills", [False, True])
def test_state_in_the_process_is_found(app: Celery, kind: str, kills: bool) -> None:
    use = STATE[kind]

    def count(self: Any) -> int:
        done = 0
        for user in self.iterate("users", USERS):
            done = use(self, user)
        return done

    with pytest.raises(AssertionError, match=r"interrupted at place 1 .*\n.*the value returned: expected \d+, found"):
        assert_resumable(app.task(base=Base, bind=True, name="count")(count), kills=kills)


# -- what check= and setup= use is the world


class Fake:
    """A fake of a service, which tests put in the place of a client."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, user: str) -> None:
        if user not in self.sent:
            self.sent.append(user)

    @property
    def messages(self) -> list[str]:
        return OUTBOX


OUTBOX: list[str] = []
FAKE = Fake()


def sent_to_outbox() -> list[str]:
    return OUTBOX


class Sender(ContinuableTask):
    abstract = True
    client = Fake()
    sent: list[str] = []


def send_by_client(self: Any) -> None:
    for user in self.iterate("users", USERS):
        self.client.send(user)


def send_by_class(self: Any) -> None:
    for user in self.iterate("users", USERS):
        if user not in Sender.sent:
            Sender.sent.append(user)


def send_to_outbox(self: Any) -> None:
    for user in self.iterate("users", USERS):
        if user not in OUTBOX:
            OUTBOX.append(user)


def replace_client() -> None:
    Sender.client = Fake()


class Outbox:
    def read(self) -> list[str]:
        return sorted(OUTBOX)


@pytest.mark.parametrize(
    ("function", "setup", "check"),
    [
        (send_by_client, lambda: Sender.client.sent.clear(), lambda: Sender.client.sent),
        (send_by_client, replace_client, lambda: Sender.client.sent),
        (send_by_class, lambda: Sender.sent.clear(), lambda: Sender.sent),
        (send_by_class, Sender.sent.clear, partial(list, Sender.sent)),
        (send_to_outbox, OUTBOX.clear, lambda: OUTBOX),
        (send_to_outbox, OUTBOX.clear, OUTBOX.copy),
        (send_to_outbox, OUTBOX.clear, sent_to_outbox),
        (send_to_outbox, OUTBOX.clear, lambda: sent_to_outbox()),
        (send_to_outbox, OUTBOX.clear, Outbox().read),
        (send_to_outbox, lambda: OUTBOX.clear(), lambda: FAKE.messages),
        (send_to_outbox, partial(OUTBOX.__delitem__, slice(None)), lambda: len(OUTBOX)),
    ],
)
def test_the_world_is_spared(app: Celery, function: Any, setup: Any, check: Any) -> None:
    assert_resumable(app.task(base=Sender, bind=True, name="send")(function), setup=setup, check=check)
    assert check() in (USERS, 4)


MODULE: Any = sys.modules[__name__]


def test_a_variable_that_setup_replaces(app: Celery) -> None:
    def replace() -> None:
        MODULE.OUTBOX = []

    made = app.task(base=Sender, bind=True, name="send")(send_to_outbox)
    assert_resumable(made, setup=replace, check=lambda: MODULE.OUTBOX)


def test_a_fake_on_the_task_itself() -> None:
    """The name of a task is a proxy until its app is used."""
    app = Celery("lazy", set_as_current=False)

    class Charging(ContinuableTask):
        abstract = True

        def __init__(self) -> None:
            self.client = Fake()

    @app.task(base=Charging, bind=True)
    def charge(self: Any) -> None:
        for user in self.iterate("users", USERS):
            self.client.send(user)

    assert_resumable(charge, setup=lambda: charge.client.sent.clear(), check=lambda: charge.client.sent)
    assert charge.client.sent == USERS


def test_large_states_are_left_alone() -> None:
    rows: list[Any] = [0] * 20_000
    small: list[Any] = [1]
    state = ProcessState(Used(), objects=True)
    state.keep({"small": small, "rows": rows})
    rows.append(1)
    small.append(1)
    state.restore()
    assert (len(rows), small) == (20_001, [1])


def test_tasks_of_all_forms(app: Celery) -> None:
    class Counting(ContinuableTask):
        name = "class"

        def __init__(self) -> None:
            self.rows: list[str] = []

        def run(self) -> int:
            for user in self.iterate("users", USERS):
                self.rows.append(user)
                VARIABLE.append(user)
            return len(VARIABLE)

    @continuable
    @app.task(bind=True)
    def plain(self: Any) -> int:
        for user in self.iterate("users", USERS):
            VARIABLE.append(user)
        return len(VARIABLE)

    @app.task(base=ContinuableTask, bind=True, autoretry_for=(OSError,), pydantic=True)
    def wrapped(self: Any) -> int:
        for user in self.iterate("users", USERS):
            VARIABLE.append(user)
        return len(VARIABLE)

    for made in (app.register_task(Counting()), plain, wrapped):
        with pytest.raises(AssertionError, match="interrupted at place 1 "):
            assert_resumable(made)


class Unbound:
    """A proxy whose object is missing, as one of Flask's outside of a request."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("outside of a request")


CURRENT: Any = None


def test_proxies_are_not_looked_into(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "CURRENT", Unbound())

    def send(self: Any) -> None:
        for user in self.iterate("users", USERS):
            if user not in OUTBOX and CURRENT is not None:
                OUTBOX.append(user)

    def check() -> list[str]:
        return OUTBOX if CURRENT is not None else []

    assert_resumable(app.task(base=Sender, bind=True, name="send")(send), setup=OUTBOX.clear, check=check)


def test_a_rehearsal_leaves_objects_of_the_class_alone(app: Celery) -> None:
    """A test reads its fakes between two executions."""
    replace_client()
    made = app.task(base=Sender, bind=True, name="send")(send_by_client)
    with interrupt_during_step(made, "users", cursor=2) as run:
        made.apply()
    assert Sender.client.sent == USERS[:2]
    run_until_done(run)
    assert Sender.client.sent == USERS
