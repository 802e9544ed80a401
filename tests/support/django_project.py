"""The Django project of the unit tests: one for all of them, for a process can have no more."""

from __future__ import annotations

import threading
from pathlib import Path

import django
import pytest
from django.apps import AppConfig
from django.conf import settings
from django.db import connections


class RowsConfig(AppConfig):
    """The app of the models that tests make."""

    name = __name__
    label = "rows"
    path = str(Path(__file__).parent)


settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=[
        f"{__name__}.RowsConfig",
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
        "celery_continuations.contrib.django",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    ROOT_URLCONF="tests.support.django_urls",
    ALLOWED_HOSTS=["testserver"],
    SECRET_KEY="x",
    USE_TZ=True,
    STATIC_URL="/static/",
)
django.setup()


def threads_close_connections(patch: pytest.MonkeyPatch) -> None:
    """Each thread closes its connections when it ends, which Django leaves to the collector."""
    run = threading.Thread.run

    def run_and_close(thread: threading.Thread) -> None:
        try:
            run(thread)
        finally:
            connections.close_all()

    patch.setattr(threading.Thread, "run", run_and_close)
