"""How the site is built: ``make docs``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from celery import Task

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "celery-continuations"
# Attributes of the same name, as step, are of several classes; what is meant is the one of the class at hand.
suppress_warnings = ["ref.python"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = project
exclude_patterns = ["_build"]
myst_heading_anchors = 4
napoleon_use_ivar = True  # else an attribute of a NamedTuple is described twice
autodoc_member_order = "bysource"


def link_to_the_readme(app: Any, page: str, source: list[str]) -> None:
    """Let the pages link to the README as they do in the repository, of which the site has a copy."""
    if page == "overview":
        text = (ROOT / "README.md").read_text().replace("](docs/", "](")
        source[0] = re.sub(
            r"\[([^]]+)\]\((?!https?:|#)(?![\w/]+\.md)[^)]*\)|\[([^]]+)\]\((?:example_project/|[A-Z])[^)]*\)",
            r"\1\2",
            text,
        )
    source[0] = re.sub(r"\]\((\.\./)+README\.md", "](/overview.md", source[0])


def skip_what_is_celerys(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the attributes of Celery's own tasks, whose text refers to Celery's site."""
    is_ours = str(getattr(obj, "__module__", "")).startswith("celery_continuations")
    return True if hasattr(Task, name) and not is_ours else None


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", skip_what_is_celerys)
    app.connect("source-read", link_to_the_readme)
