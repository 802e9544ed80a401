"""The app."""

from django.apps import AppConfig


class ContinuationsConfig(AppConfig):
    """The app for ``INSTALLED_APPS``."""

    name = "celery_continuations.contrib.django"
    label = "celery_continuations"
    verbose_name = "Celery continuations"
    default_auto_field = "django.db.models.BigAutoField"
