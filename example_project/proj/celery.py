"""The app."""

from celery import Celery

app = Celery("proj", include=["proj.tasks"])
app.config_from_object("proj.settings")
