"""The report of a sweep as a self-contained HTML file, light or dark as the reader's browser."""

import base64
import html
from collections.abc import Callable, Mapping, Sequence

from diffusion_jax.report.sweep_figures import DARK, LIGHT, Row, Theme, best_of, curves_svg, parallel_svg, places, say

_STYLE = """
:root { color-scheme: light dark; --ink: %s; --faint: %s; --page: %s; --best: %s; --band: #f3f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: %s; --faint: %s; --page: %s; --best: %s; --band: #171c23; }
}
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid var(--faint); }
th:last-child, td:last-child { text-align: left; }
tbody tr:nth-child(even) { background: var(--band); } tr.best td { color: var(--best); font-weight: 600; }
pre { background: var(--band); padding: .8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; }
img { max-width: 100%%; } .scroll { overflow-x: auto; } .figures { display: flex; flex-wrap: wrap; gap: 1rem; }
.figures picture { flex: 1 1 30rem; } .samples { image-rendering: pixelated; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dd { margin: 0; }
"""


def report_html(
    rows: Sequence[Row], *, title: str, metric: str, facts: Mapping[str, str], command: str, grid: bytes | None
) -> bytes:
    """The HTML page: facts, the table of trials, curves, parallel coordinates, and the best trial's command and grid.

    rows are at least one, and ranked (`sweep_figures.ranked`). grid is a PNG of samples.
    """
    keys = list(rows[0].changes)
    best = best_of(rows)
    head = ["rank", "trial", metric, *keys, "steps", "seconds", "state"]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        "<dl>" + "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items()) + "</dl>",
        "<h2>Trials</h2>",
        '<div class="scroll"><table><thead><tr>',
        *(f"<th>{html.escape(name)}</th>" for name in head),
        "</tr></thead><tbody>",
        *(_row(rank, row, keys, best=row is best) for rank, row in zip(places(rows), rows, strict=True)),
        "</tbody></table></div>",
        "<h2>Figures</h2>",
        '<div class="figures">',
        _picture("learning curves", lambda theme: curves_svg(rows, metric, theme)),
        _picture("parallel coordinates", lambda theme: parallel_svg(rows, metric, theme)),
        "</div>",
    ]
    if best is not None:
        parts += [f"<h2>The best: trial {best.number:03d}</h2>", f"<pre>{html.escape(command)}</pre>"]
    if grid is not None:
        parts.append(f'<img class="samples" alt="samples of the best trial" src="{_data("image/png", grid)}">')
    colors = [f for theme in (LIGHT, DARK) for f in (theme.ink, theme.faint, theme.background, theme.best)]
    page = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',  # without it a browser asks a server for an icon
        f"<title>{html.escape(title)}</title><style>{_STYLE % tuple(colors)}</style></head>",
        "<body>\n" + "\n".join(parts) + "\n</body></html>\n",
    ]
    return "\n".join(page).encode()


def _row(rank: str, row: Row, keys: Sequence[str], *, best: bool) -> str:
    cells = [
        rank,
        f"{row.number:03d}",
        "" if row.value is None else f"{row.value:.6g}",
        *(say(row.changes[key]) for key in keys),
        str(row.course[-1][0]) if row.course else "",
        "" if row.seconds is None else f"{row.seconds:.0f}",
        row.state + (f": {row.reason}" if row.reason else ""),
    ]
    mark = ' class="best"' if best else ""
    return f"<tr{mark}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _picture(alt: str, draw: Callable[[Theme], bytes]) -> str:
    light, dark = (_data("image/svg+xml", draw(theme)) for theme in (LIGHT, DARK))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{alt}" src="{light}"></picture>'
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
