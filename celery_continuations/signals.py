"""Celery signals for the events of a continuable task.

Each is sent with the task as sender and ``task_id``.  If a receiver raises, Celery logs the error and continues.

====================  =====================================================
``step_started``      ``step``: the step
``step_completed``    ``step``
``step_skipped``      ``step``: completed in an earlier execution
``step_interrupted``  ``step``, ``reason``: the current step of an interrupted task, to be continued
``step_failed``       ``step``, ``error``: a call step's function raised, or an error left the task within a block
``task_interrupted``  ``interrupt``: step, cursor, reason; ``error``: the error that caused it, or None
``task_resumed``      ``continuation``: the run's view of itself
``task_recovered``    sent by a worker's main process: a task whose execution was lost is requeued;
                      the sender is None if this worker does not know the task
====================  =====================================================
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = [
    "step_completed",
    "step_failed",
    "step_interrupted",
    "step_skipped",
    "step_started",
    "task_interrupted",
    "task_recovered",
    "task_resumed",
]

step_started = Signal(name="step_started", providing_args=["task_id", "step"])
step_completed = Signal(name="step_completed", providing_args=["task_id", "step"])
step_skipped = Signal(name="step_skipped", providing_args=["task_id", "step"])
step_interrupted = Signal(name="step_interrupted", providing_args=["task_id", "step", "reason"])
step_failed = Signal(name="step_failed", providing_args=["task_id", "step", "error"])
task_interrupted = Signal(name="task_interrupted", providing_args=["task_id", "interrupt", "error"])
task_recovered = Signal(name="task_recovered", providing_args=["task_id"])
task_resumed = Signal(name="task_resumed", providing_args=["task_id", "continuation"])
