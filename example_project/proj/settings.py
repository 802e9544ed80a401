"""Celery's configuration: without a server, or on Redis or RabbitMQ with one environment variable.

======================  =================================================================
``BROKER_URL``          ``redis://…`` or ``amqp://…``; without it files in the run folder
``AIRPORTS_FOLDER``     the run folder, where the table is too; without it ``run/``
``AIRPORTS_QUEUE``      the queue; without it ``airports``
``AIRPORTS_CALLBACKS``  where ``proj.web`` is; without it port 8000 of this machine
``AIRPORTS_SECRET``     signs the addresses of callbacks; without it a file of the run folder
======================  =================================================================
"""

import os
import secrets
from contextlib import suppress
from pathlib import Path

_here = Path(__file__).resolve().parent.parent

run_folder = Path(os.environ.get("AIRPORTS_FOLDER") or _here / "run").resolve()
database = run_folder / "airports.sqlite3"
mail = run_folder / "mail.txt"

# These transports do not create their folders.
_messages, _processed, _control, _results = (
    run_folder / name for name in ("messages", "processed", "control", "results")
)
for _folder in (_messages, _processed, _control, _results):
    _folder.mkdir(parents=True, exist_ok=True)

broker_url = os.environ.get("BROKER_URL") or "filesystem://localhost//"
if broker_url.startswith("filesystem:"):
    broker_transport_options = {
        "data_folder_in": str(_messages),
        "data_folder_out": str(_messages),
        "control_folder": str(_control),
        # Without these two, messages pass through the system's temporary folder.
        "processed_folder": str(_processed),
        "store_processed": True,
        "polling_interval": 0.05,
    }
broker_connection_retry_on_startup = True

# It also stores the progress of continuable tasks: continuation_store is "auto".
result_backend = broker_url if broker_url.startswith("redis") else f"file://{_results}"

# A unique name, so that a shared server does not deliver other projects' messages here.
task_default_queue = os.environ.get("AIRPORTS_QUEUE") or "airports"
task_track_started = True

# Often, so that the display of the progress moves. The default is 1 second.
continuation_checkpoint_interval = 0.2

# Often, so that a short sleep is short. The default is 3 seconds.
continuation_sweep_interval = 0.5


def _secret() -> str:
    """Return a secret that the workers and the web server of this run folder share."""
    path = run_folder / "callback_secret"
    if not path.exists():
        own = run_folder / f"callback_secret.{os.getpid()}"
        own.touch(0o600)
        own.write_text(secrets.token_urlsafe(32))
        with suppress(FileExistsError):  # another process was first
            os.link(own, path)
        own.unlink()
    return path.read_text()


# Where approvals are posted to. The web server listens on this machine only.
continuation_callback_url = os.environ.get("AIRPORTS_CALLBACKS") or "http://127.0.0.1:8000/callbacks"
continuation_callback_secret = os.environ.get("AIRPORTS_SECRET") or _secret()
