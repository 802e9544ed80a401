"""Results, and what can be done to a task from outside."""

from __future__ import annotations

from typing import Any

from celery import Celery
from typing_extensions import assert_type

from celery_continuations import ContinuableAsyncResult, ContinuableTask, continuable, deliver
from celery_continuations.control import cancel, retry
from celery_continuations.core.snapshot import Waiting
from celery_continuations.result import Progress

app = Celery("shop")


@continuable
def publish(self: ContinuableTask, number: int) -> str:
    return str(number)


result = publish.delay(3)
assert_type(result.get(timeout=3), str)
assert_type(result.progress, Progress | None)
assert_type(result.steps, tuple[str, ...])
assert_type(result.resumptions, int)
assert_type(result.waiting, Waiting | None)
assert_type(result.status_of_record, str | None)
result.deliver("approval", {"by": "ann"})
result.retry("import", accept_source=True)
result.cancel()
# wrong: mypy+=attr-defined pyright=reportAttributeAccessIssue
result.progess
# wrong: mypy=call-arg pyright=reportCallIssue
result.deliver("approval")
# wrong: mypy=call-arg pyright=reportCallIssue
result.retry("import", accept_sources=True)
if result.progress is not None:
    assert_type(result.progress.done, int | None)
    assert_type(result.progress.percent, int | None)

anywhere = ContinuableAsyncResult[str]("7f3a", app=app, store="memory")
assert_type(anywhere, ContinuableAsyncResult[str])
assert_type(anywhere.get(), str)
unknown = ContinuableAsyncResult("7f3a", app=app)
assert_type(unknown, ContinuableAsyncResult[Any])
# wrong: mypy=call-arg pyright=reportCallIssue
ContinuableAsyncResult("7f3a", stroe="memory")

deliver("7f3a", "approval", {"by": "ann"}, app=app, store="memory")
# wrong: mypy=call-arg pyright=reportCallIssue
deliver("7f3a", "approval", {"by": "ann"}, appp=app)
cancel("7f3a", app=app)
retry("7f3a", "import", accept_source=True)
# wrong: mypy=call-arg pyright=reportCallIssue
retry("7f3a", stpe="import")
