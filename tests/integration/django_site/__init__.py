"""A Django project with Celery, as their documentations have it."""

from tests.integration.django_site.celery import app as celery_app

__all__ = ["celery_app"]
