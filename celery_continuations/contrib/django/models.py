"""The two tables of :class:`celery_continuations.stores.django.DjangoStore`."""

from __future__ import annotations

from django.db import models

__all__ = ["LeaseRow", "RecordRow"]

_LONGEST = 255


class RecordRow(models.Model):
    """A record; ``worker`` is null for one without an owner, a time is null for never."""

    namespace = models.CharField(max_length=_LONGEST)
    task_id = models.CharField(max_length=_LONGEST)
    fence = models.TextField()
    worker = models.CharField(max_length=_LONGEST, null=True)
    due = models.FloatField(null=True)
    expires = models.FloatField(null=True)
    snapshot = models.TextField(null=True)
    message = models.TextField(null=True)
    value = models.TextField(null=True)
    inbox = models.TextField(null=True)

    class Meta:
        """One row for each task; indexes find the few that are due, owned or expire."""

        db_table = "celery_continuations_record"
        verbose_name = "continuation"
        constraints = [models.UniqueConstraint(fields=["namespace", "task_id"], name="continuations_record_task")]
        indexes = [
            models.Index(fields=["namespace", "due"], name="continuations_due", condition=models.Q(due__isnull=False)),
            models.Index(
                fields=["namespace", "worker"], name="continuations_worker", condition=models.Q(worker__isnull=False)
            ),
            models.Index(fields=["expires"], name="continuations_expires", condition=models.Q(expires__isnull=False)),
        ]

    def __str__(self) -> str:
        return str(self.task_id)


class LeaseRow(models.Model):
    """The lease of a worker."""

    namespace = models.CharField(max_length=_LONGEST)
    worker = models.CharField(max_length=_LONGEST)
    until = models.FloatField()
    note = models.TextField()

    class Meta:
        """One row for each worker."""

        db_table = "celery_continuations_lease"
        verbose_name = "lease"
        constraints = [models.UniqueConstraint(fields=["namespace", "worker"], name="continuations_lease_worker")]

    def __str__(self) -> str:
        return str(self.worker)
