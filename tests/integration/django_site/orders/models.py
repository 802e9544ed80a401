"""What the tasks read, and what they write."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """Something to ship."""


class Shipment(models.Model):
    """Nothing here keeps an order from being shipped twice."""

    order = models.BigIntegerField()
    pid = models.IntegerField()
