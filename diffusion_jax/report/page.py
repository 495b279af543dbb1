"""An HTML page as one file that needs no other."""

import base64
import html

COLOURS = """
:root { color-scheme: light dark; --paper: #fafafa; --card: #ffffff; --ink: #1c1c1e; --soft: #6a6a70; --line: #d9d9de; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #17171a; --card: #222226; --ink: #ececf0; --soft: #a0a0a8; --line: #3a3a40; }
}
body { margin: 0; padding: 1.5rem; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
"""
"""The colours of every page by day and by night, and its letters."""


def document(title: str, style: str, body: str) -> bytes:
    """The page with a title, rules of style beside `COLOURS`, and the HTML of its body. It runs no script."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{COLOURS}{style.lstrip()}</style>
</head>
<body>
{body}
</body>
</html>
""".encode()


def address(kind: str, data: bytes) -> str:
    """The data: address of bytes of a MIME type, so that the page can be sent by itself."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
