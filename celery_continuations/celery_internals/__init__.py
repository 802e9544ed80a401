"""All uses of Celery, kombu and billiard beyond their public interface.

Each is here with its reason, and has a test that fails when it changes.
"""

from __future__ import annotations

from celery_continuations.celery_internals.tasks import (
    FinishedTask,
    app_of_unbound,
    chord_claim_left,
    counts_in_chords_once,
    error_in,
    forget_cached,
    heard_late,
    ignore_result_of,
    is_predicate,
    is_replacement,
    keeps_results,
    mask_in_reports,
    on_every_app,
    promised_options,
    rewrap_autoretry,
    serializer_of,
    when_evaluated,
)
from celery_continuations.celery_internals.workers import (
    SOFT_LIMIT,
    around_soft_shutdown,
    forget_consumer_cancellation,
    in_pool_child,
    is_lost_process,
    is_stored_as_failure,
    is_unsendable,
    pool_pids,
    read_all_results,
    take_over_revoke,
    terminate_signal,
    unflag_revoked,
    unwrapped,
)

__all__ = [
    "SOFT_LIMIT",
    "FinishedTask",
    "app_of_unbound",
    "around_soft_shutdown",
    "chord_claim_left",
    "counts_in_chords_once",
    "error_in",
    "forget_cached",
    "forget_consumer_cancellation",
    "heard_late",
    "ignore_result_of",
    "in_pool_child",
    "is_lost_process",
    "is_predicate",
    "is_replacement",
    "is_stored_as_failure",
    "is_unsendable",
    "keeps_results",
    "mask_in_reports",
    "on_every_app",
    "pool_pids",
    "promised_options",
    "read_all_results",
    "rewrap_autoretry",
    "serializer_of",
    "take_over_revoke",
    "terminate_signal",
    "unflag_revoked",
    "unwrapped",
    "when_evaluated",
]
