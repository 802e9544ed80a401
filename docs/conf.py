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
        source[0] = re.sub(r"(!?\[([^]]*)\])\(([^)]+)\)", _link, (ROOT / "README.md").read_text())
    source[0] = re.sub(r"\]\((\.\./)+README\.md", "](/overview.md", source[0])


def _link(found: re.Match[str]) -> str:
    """Return a link of the README as it is on the site, or only its text where the site has no such page."""
    label, text, target = found.groups()
    if target.startswith(("http:", "https:", "#")):
        return found[0]
    return f"{label}({target.removeprefix('docs/')})" if target.startswith("docs/") else text


def skip_what_is_celerys(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the attributes of Celery's own tasks, whose text refers to Celery's site."""
    is_ours = str(getattr(obj, "__module__", "")).startswith("celery_continuations")
    return True if hasattr(Task, name) and not is_ours else None


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", skip_what_is_celerys)
    app.connect("source-read", link_to_the_readme)
