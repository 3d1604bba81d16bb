"""A page of blocks as one HTML file: its data, a style and a script, and nothing that is fetched.

Text from data and models lies in the page as JSON, of which no character can end it, and the script makes text of it
alone; a policy in the page lets no other script or style run and nothing be loaded.
"""

import base64
import hashlib
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orpo_exp.files import write_atomically

REPORT = "report.html"
Block = dict[str, Any]  # `kind`: see page.js; `title`, `note`: text; and what this kind needs
HERE = Path(__file__).parent
LAST_LINES, LONGEST_LINE = 15, 200  # of an error; characters

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main><noscript><p>{plain}</p></noscript></main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def written_page(path: Path, title: str, plain: str, blocks: Sequence[Block]) -> None:
    """Replace a page at once. plain: what those see who let no script run."""
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}; base-uri 'none'"
    content = json.dumps({"title": title, "blocks": list(blocks)}, ensure_ascii=True, allow_nan=False)
    data = content.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    said = {"title": html.escape(title), "plain": html.escape(plain), "policy": html.escape(policy, quote=False)}
    write_atomically(path, PAGE.format(**said, style=style, data=data, script=script))


def digest(content: str) -> str:
    """How a policy names a style or a script that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def rounded(value: float | None, digits: int = 5) -> float | None:
    """A number as a plot needs it; None for one that is not finite."""
    return float(f"{value:.{digits}g}") if value is not None and math.isfinite(value) else None


def thinned(curve: Sequence[tuple[int, float]], most: int) -> list[list[Any]]:
    """Steps and values of a curve, at most so many, the first and the last among them."""
    if len(curve) > most:
        curve = [curve[round(i * (len(curve) - 1) / (most - 1))] for i in range(most)]
    return [[step for step, _ in curve], [rounded(value) for _, value in curve]]


def cell(text: str, value: float | None = None) -> list[Any]:
    """Of a table: what is shown, and what it is sorted by."""
    return [text, rounded(value, 12)]


def cut(text: str, most: int = 2000) -> str:
    """The text, of a long one its beginning."""
    return text if len(text) <= most else text[: most - 1] + "…"


def last_lines(text: str) -> str:
    """How an error or a log ends; one line may hold a whole tensor."""
    return "\n".join(cut(line, LONGEST_LINE) for line in text.strip().splitlines()[-LAST_LINES:])
