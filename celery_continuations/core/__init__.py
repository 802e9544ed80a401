"""Runs: steps, cursors, checkpoints, snapshots.

Pure Python: no Celery, no I/O, no clock, no logger.
"""
