"""The web server to which an approval is posted: ``python -m proj.web``, or ``gunicorn proj.web:application``."""

from wsgiref.simple_server import make_server

from celery_continuations.callbacks import wsgi
from proj.celery import app

application = wsgi(app)

if __name__ == "__main__":
    make_server("127.0.0.1", 8000, application).serve_forever()
