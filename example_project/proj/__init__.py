"""A Celery project that imports the airports of the world into a table."""

from proj.celery import app as celery_app

__all__ = ["celery_app"]
