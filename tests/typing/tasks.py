"""Tasks: their parameters, what they return, and their results."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from celery import Celery
from typing_extensions import assert_type

from celery_continuations import AppTask, ContinuableAsyncResult, ContinuableTask, continuable

app = Celery("shop")


@continuable
def import_users(self: ContinuableTask, path: str, limit: int = 10) -> int:
    for row in self.iterate("rows", [path]):
        assert_type(row, str)
    return limit


assert_type(import_users("users.csv"), int)
assert_type(import_users.delay("users.csv", limit=3), ContinuableAsyncResult[int])
assert_type(import_users.delay("users.csv").get(timeout=3), int)
assert_type(import_users.apply_async(("users.csv",), countdown=3), ContinuableAsyncResult[int])
assert_type(import_users.AsyncResult("7f3a").get(), int)

# wrong: mypy=arg-type pyright=reportArgumentType
import_users(3)
# wrong: mypy=call-arg pyright=reportCallIssue
import_users("users.csv", limits=3)
# wrong: mypy=arg-type pyright=reportArgumentType
import_users.delay(3)
# wrong: mypy=call-arg pyright=reportCallIssue
import_users.apply_async(("users.csv",), countdwon=3)
# wrong: mypy+=attr-defined pyright=reportAttributeAccessIssue
import_users.dealy("users.csv")


@continuable(max_resumptions=100, max_runtime=timedelta(minutes=5), on_change="restart")
def export_users(self: ContinuableTask, path: str) -> list[str]:
    return [path]


assert_type(export_users("users.csv"), list[str])
assert_type(export_users.delay("users.csv"), ContinuableAsyncResult[list[str]])

# wrong: mypy=arg-type pyright=reportArgumentType
export_users(3)


# wrong: mypy=call-overload,untyped-decorator pyright=reportCallIssue
@continuable(max_resumption=100)
def misspelt(self: ContinuableTask) -> None: ...


# wrong: mypy=call-overload,untyped-decorator pyright=reportArgumentType
@continuable(max_resumptions="100")
def mistyped(self: ContinuableTask) -> None: ...


# wrong: mypy=call-overload,untyped-decorator pyright=reportArgumentType
@continuable(on_change="ignore")
def unknown_choice(self: ContinuableTask) -> None: ...


# wrong: mypy-=untyped-decorator
@app.task(base=ContinuableTask, bind=True)
def send_mails(self: ContinuableTask, users: list[str]) -> int:
    for user in self.iterate("mails", users):
        assert_type(user, str)
    # wrong: mypy+=attr-defined pyright=reportAttributeAccessIssue
    self.iterrate("mails", users)
    return len(users)


# wrong: pyright-=reportFunctionMemberAccess
send_mails.delay(["ann"])
# wrong: mypy-=assert-type pyright-=reportAssertTypeFailure,reportFunctionMemberAccess
assert_type(send_mails.delay(["ann"]), ContinuableAsyncResult[Any])
# wrong: mypy+=attr-defined pyright+=reportAttributeAccessIssue pyright-=reportFunctionMemberAccess
send_mails.dealy(["ann"])


# wrong: mypy-=untyped-decorator
@app.task(bind=True, base=ContinuableTask)
def send_more(self: ContinuableTask[[list[str]], int], users: list[str]) -> int:
    assert_type(self.step("count", len, users), int)
    return len(users)


@continuable
# wrong: mypy+=arg-type mypy-=untyped-decorator pyright+=reportArgumentType
@app.task(bind=True)
def above_a_task(self: ContinuableTask, users: list[str]) -> int:
    return len(users)


@continuable
# wrong: mypy-=untyped-decorator
@app.task(bind=True)
def above_an_untyped_task(self: Any, users: list[str]) -> int:
    return len(users)


class Base(ContinuableTask):
    """A base of one's own."""

    def lock(self) -> str:
        # wrong: mypy-=no-any-return pyright-=reportReturnType
        return self.name


# wrong: mypy-=untyped-decorator
@app.task(base=Base, bind=True)
def locked(self: Base, n: int) -> int:
    assert_type(self.lock(), str)
    # wrong: mypy+=attr-defined pyright=reportAttributeAccessIssue
    self.lokc()
    return self.step("double", lambda: 2 * n)


class Generic(ContinuableTask[[str], int]):
    """A task that is a class."""

    def run(self, path: str) -> int:
        return self.step("length", len, path)


assert_type(Generic()("users.csv"), int)


# wrong: mypy-=untyped-decorator
@app.task(base=AppTask, bind=True)
def of_the_app(self: AppTask) -> None:
    self.checkpoint()
    # wrong: mypy+=attr-defined pyright=reportAttributeAccessIssue
    self.chekpoint()
