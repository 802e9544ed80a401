"""What a run is: steps, cursors, checkpoints, snapshots.

Pure Python: no Celery, no I/O, no clock, no logger.
"""
