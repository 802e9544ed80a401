"""The name that :mod:`celery_continuations.control` had in release 0.1; imports of it keep working."""

from celery_continuations.control import cancel, deliver, pause, resume, retry

__all__ = ["cancel", "deliver", "pause", "resume", "retry"]
