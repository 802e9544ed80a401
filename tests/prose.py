"""Count the phrases that this project's prose avoids.

Prints ``file:line: phrase`` for each hit and exits with 1 if there are more than ``--limit``. Code in Markdown, in
backticks or in fenced blocks, does not count. Without arguments it reads all Python, Markdown and ``*.cfg`` files that
git tracks, except this one:

    python tests/prose.py [--limit N] [FILE ...]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

# The maximum number of hits.  Lower it with each phrase that is rewritten.
LIMIT = 5

PHRASES = (
    "is no",
    "as of",
    "whoever",
    "somebody",
    "nobody",
    "anew",
    "in hand",
    "so many",
    "for ever",
    "is told",
    "goes on",
    "got on",
    "besides",
)

# A phrase may go across the end of a line.
PHRASE = re.compile(r"\b(?:" + "|".join(PHRASES).replace(" ", r"\s+") + r")\b", re.IGNORECASE)
CODE = re.compile(r"^([> ]*)(`{3,}).*?^\1\2|(`+)(?:[^`\n]|\n(?!\n))+\3", re.MULTILINE | re.DOTALL)


def tracked() -> list[Path]:
    """Return the files that git tracks and that have prose in them."""
    command = ["git", "ls-files", "-z", "--", "*.py", "*.md", "*.cfg"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and ROOT / name != Path(__file__).resolve()]


def without_code(text: str) -> str:
    """Replace the code in Markdown by backticks, so that each line keeps its number."""
    return CODE.sub(lambda found: re.sub(r"[^\n]", "`", found[0]), text)


def hits(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line number and the phrase of each hit in a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = without_code(text)
    for found in PHRASE.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, " ".join(found[0].lower().split())


def main(arguments: list[str] | None = None) -> int:
    """Print the hits, and return the exit code."""
    parser = argparse.ArgumentParser(description="Count the phrases that this project's prose avoids.")
    parser.add_argument("files", nargs="*", type=Path, help="default: all *.py, *.md and *.cfg files that git tracks")
    parser.add_argument("--limit", type=int, default=LIMIT, help="how many hits are allowed (default: %(default)s)")
    options = parser.parse_args(arguments)
    total = 0
    for path in options.files or tracked():
        for line, phrase in hits(path):
            total += 1
            print(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{line}: {phrase}")
    print(f"{total} hits, {options.limit} allowed", file=sys.stderr)
    return int(total > options.limit)


if __name__ == "__main__":
    sys.exit(main())
