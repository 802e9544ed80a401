"""What can be done from a shell: ``celery -A proj continuations``."""
