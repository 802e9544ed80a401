"""What ``iterate`` can loop over.

A source yields ``(item, cursor after this item)`` from any cursor on.
"""

from celery_continuations.sources.base import Source, opener

__all__ = ["Source", "opener"]
