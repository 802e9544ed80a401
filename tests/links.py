"""Check that each link within a built site leads somewhere.

    python tests/links.py FOLDER

Prints ``page: link`` for each dead one, and exits with 1 if there is any. Links to other sites are not followed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a" and given.get("href"):
            self.links.add(str(given["href"]))
        if given.get("id"):
            self.anchors.add(str(given["id"]))


def dead_links(site: Path) -> Iterator[str]:
    """Yield the dead links of a site, each with its page."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        raise SystemExit(f"{site} has no page")
    for path, page in pages.items():
        for link in sorted(page.links):
            target, _, anchor = unquote(link).partition("#")
            if re.match(r"\w+:", target):
                continue
            found = (path.parent / target).resolve() if target else path
            if not found.is_file() or (anchor and found in pages and anchor not in pages[found].anchors):
                yield f"{path.name}: {link}"


if __name__ == "__main__":
    dead = list(dead_links(Path(sys.argv[1])))
    print("\n".join(dead))
    sys.exit(bool(dead))
