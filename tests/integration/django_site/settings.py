"""Settings; what a test chooses comes in SITE: the database, and Celery's settings in small letters."""

from __future__ import annotations

import json
import os

_site = json.loads(os.environ["SITE"])

SECRET_KEY = "x"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["celery_continuations.contrib.django", "tests.integration.django_site.orders"]
DATABASES = {"default": _site["database"]}
CELERY_CONTINUATION_STORE = "django"
CELERY_CONTINUATION_LEASE = 2
CELERY_CONTINUATION_SWEEP_INTERVAL = 1
globals().update({f"CELERY_{name.upper()}": value for name, value in _site["celery"].items()})
