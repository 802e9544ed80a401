"""Draw ``docs/images/demo.svg``, the picture in the README: what the demo prints, from a run of it.

Run it with ``python picture.py``.  It needs what ``demo.py`` needs, and takes as long.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import demo
from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "demo.svg"

#: Columns of the picture; longer lines are cut.
WIDTH = 92

#: The beginnings of lines that the README leaves out.
LEFT_OUT = (
    "A task imports",
    "Broker:",
    "  waits for",
    "The mail",
    "  28,298 airports are ready",
    "  To approve",
    "  http:",
    'POST {"by": "ann"}: 204, the same',
    'POST {"by": "bob"}',
    "  ok all their values",
    "  ok each step",
    "Ending",
)

# Without rich's fonts, which a browser would fetch from another site.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.S).replace("Fira Code, ", "")


def draw(printed: str) -> str:
    """Return the demo's output, with its colours, as an SVG."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False)
    for line in printed.splitlines():
        text = Text.from_ansi(line)
        if not text.plain.startswith(LEFT_OUT):
            text.truncate(WIDTH, overflow="ellipsis")
            console.print(text, no_wrap=True)
    return console.export_svg(title="make demo", code_format=FORMAT, unique_id="demo")


def main() -> int:
    """Run the demo, and draw its output if it succeeds; return its exit code."""
    demo.console = Console(record=True, width=WIDTH, highlight=False, soft_wrap=True)
    code = demo.main()
    if code == 0:
        PICTURE.write_text(draw(demo.console.export_text(styles=True)))
    return code


if __name__ == "__main__":
    sys.exit(main())
