"""The Django app: its migrations and its admin."""

from __future__ import annotations

from pathlib import Path

from django.core.management import call_command
from django.db import connections

from celery_continuations.core.snapshot import Snapshot
from celery_continuations.stores import Command, Fence, Status, Update


def test_migrations_are_complete() -> None:
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)


def test_the_admin_lists_tasks_and_changes_nothing(django_database: Path) -> None:
    from django.contrib.auth.models import User
    from django.test import Client

    from celery_continuations.contrib.django.models import RecordRow
    from celery_continuations.stores.django import DjangoStore

    store = DjangoStore("default", "service")
    snapshot = Snapshot(current=("import rows", 5), progress=(5, 20), saved={"key": "secret"}).dumps()
    store.compare_and_swap("sound-id", None, Update(Fence(3, Status.RUNNING, "w/1/a"), snapshot, due_in=100))
    store.compare_and_swap("broken-id", None, Update(Fence(1, Status.QUEUED), "{"))
    store.compare_and_swap("paused-id", None, Update(Fence(1, Status.RUNNING, "w/1/b").with_command(Command.PAUSE)))
    with connections["default"].cursor() as cursor:
        cursor.execute("UPDATE celery_continuations_record SET fence = 'nonsense' WHERE task_id = 'broken-id'")
    client = Client()
    client.force_login(User.objects.create_superuser("ann"))
    page = client.get("/admin/celery_continuations/recordrow/").content.decode()
    broken = "unreadable: &#x27;nonsense&#x27;"
    for text in ("sound-id", "running", "import rows", "25%", "broken-id", broken, "running, to pause"):
        assert text in page
    assert client.get("/admin/celery_continuations/recordrow/add/").status_code == 403

    found = client.get("/admin/celery_continuations/recordrow/?q=sound").content.decode()
    assert "sound-id" in found
    assert "broken-id" not in found
    for task_id, shown in (("sound-id", "import rows"), ("broken-id", broken)):
        row = RecordRow.objects.get(task_id=task_id)
        one = client.get(f"/admin/celery_continuations/recordrow/{row.pk}/change/").content.decode()
        assert shown in one
        assert "secret" not in one
        assert "Save" not in one


def test_no_record_takes_the_list_of_the_admin_away(django_database: Path) -> None:
    from django.contrib.auth.models import User
    from django.test import Client

    from celery_continuations.stores.django import DjangoStore

    store = DjangoStore("default", "service")
    message = '{"task": "t", "headers": [], "route": {}, "properties": {}, "sending": {}, "content": [], "body": ""}'
    updates = [
        Update(Fence(1, Status.QUEUED), due_in=1e300),
        Update(Fence(1, Status.QUEUED), due_in=float("inf")),
        Update(Fence(1, Status.QUEUED), "[" * 100_000),
        Update(Fence(1, Status.QUEUED), None, "[" * 100_000),
        Update(Fence(1, Status.QUEUED), None, message),
        Update(Fence(1, Status.QUEUED), '{"version": 1, "progress": ["x", "y"]}'),
        Update(Fence(1, Status.QUEUED), '{"version": 99}'),
    ]
    for number, update in enumerate(updates):
        store.compare_and_swap(f"bad{number}", None, update)
    store.compare_and_swap("good", None, Update(Fence(1, Status.QUEUED), Snapshot(current=("rows", 5)).dumps()))
    client = Client()
    client.force_login(User.objects.create_superuser("eve"))
    page = client.get("/admin/celery_continuations/recordrow/")
    assert page.status_code == 200
    text = page.content.decode()
    assert all(f"bad{number}" in text for number in range(len(updates)))
    assert text.count("unreadable: ") >= len(updates)
    assert "rows" in text
