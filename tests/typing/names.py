"""Names: a misspelt import is an error, and every public name has a type."""

from typing_extensions import assert_type

import celery_continuations

# wrong: mypy=attr-defined pyright=reportAttributeAccessIssue
from celery_continuations import ContinuableTaks, ContinuationError, WaitTimeout, continuabel

# wrong: mypy=attr-defined pyright=reportAttributeAccessIssue
from celery_continuations.sources import csv_row, register

# wrong: mypy=attr-defined pyright=reportAttributeAccessIssue
from celery_continuations.sources.django import query_row

# wrong: mypy=attr-defined pyright=reportAttributeAccessIssue
from celery_continuations.testing import assert_resumabel

# wrong: mypy=attr-defined pyright=reportAttributeAccessIssue
celery_continuations.delivre
assert_type(celery_continuations.__version__, str)
assert_type(WaitTimeout("too late"), WaitTimeout)
error: ContinuationError = WaitTimeout("too late")
# wrong: mypy=arg-type pyright=reportArgumentType
register(3, lambda value: value)
