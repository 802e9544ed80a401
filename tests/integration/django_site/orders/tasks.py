"""Tasks that belong to no app of Celery's in particular."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import shared_task

from celery_continuations import ContinuableTask, continuable
from tests.integration.django_site.orders.models import Order, Shipment


@continuable
@shared_task(bind=True, name="orders.ship")
def ship(self: Any) -> str:
    """Ship all orders, each in a transaction of its own."""
    for order in self.iterate("orders", Order.objects.all()):
        _ship(order)
    return "shipped"


@shared_task(base=ContinuableTask, bind=True, name="orders.ship_once")
def ship_once(self: Any) -> str:
    """Ship all orders, each in one transaction with the cursor."""
    for order in self.iterate("orders", Order.objects.all(), transaction="default"):
        _ship(order)
    return "shipped"


def _ship(order: Order) -> None:
    Shipment.objects.create(order=order.pk, pid=os.getpid())
    time.sleep(0.01)
