"""Continuable tasks in a Django project: records in its database, listed in its admin.

Add ``"celery_continuations.contrib.django"`` to ``INSTALLED_APPS``, run ``migrate``, and set
``CELERY_CONTINUATION_STORE = "django"``.
"""
