"""Pieces of a self-contained HTML page: no script, nothing loaded from elsewhere, light and dark, phone and desktop.

Every piece escapes the text it is given; only `document` and `section` take markup, and only that of other pieces.
"""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from fastdqn.analysis.charts import COLOURS

MEDIA = {".mp4": "video/mp4", ".gif": "image/gif"}

# the browser itself refuses whatever the page would load from outside
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b1f24; --soft: #57606a; --rule: #d8dee4;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b0578d; --c4: #b37700; --c5: #2f8fc4; --c6: #6b4c9a; --c7: #4d4d4d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0e1116; --card: #171b22; --ink: #e6eaef; --soft: #9aa4b0; --rule: #30363d;
    --c0: #58a9e0; --c1: #f0883e; --c2: #3fc79a; --c3: #e29ac6; --c4: #e6b450; --c5: #86cdf5; --c6: #b39ddb; --c7: #b0b0b0;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main, header, footer { max-width: 72rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.5rem; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 .6rem; font-size: 1.15rem; }
p { margin: .4rem 0; }
section { margin: 1rem 0; padding: 1rem; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
footer, figcaption, dt, .soft { color: var(--soft); font-size: .875rem; }
footer { padding-bottom: 2rem; }
code { white-space: pre-wrap; font: .875em/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .8rem; margin: 0; }
dd { margin: 0; font-size: 1.15rem; font-weight: 600; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--rule); text-align: left; white-space: nowrap; }
th { font-weight: 600; }
.prose { white-space: normal; min-width: 10rem; }
video, .media { display: block; max-width: 100%; max-height: 32rem; border-radius: 6px; }
summary { cursor: pointer; }
.bar { display: flex; height: 1.75rem; border-radius: 6px; overflow: hidden; margin-bottom: .8rem; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .5em; }
.chart { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font: 14px system-ui, sans-serif; }
.chart .middle { text-anchor: middle; }
.chart .end { text-anchor: end; }
.chart path, .chart polyline { fill: none; stroke: var(--rule); }
.chart .axis { stroke: var(--soft); }
.chart .level { stroke: var(--soft); stroke-dasharray: 5 4; }
.chart polyline { stroke: var(--colour); stroke-linejoin: round; }
.chart .seed { stroke-width: .8; opacity: .5; }
.chart .mean { stroke-width: 2.2; }
.chart .band { fill: var(--colour); stroke: none; opacity: .18; }
""" + "".join(f".c{index} {{ --colour: var(--c{index}); }}\n" for index in range(COLOURS))


def document(title: str, subtitle: str, sections: Sequence[str], foot: str) -> str:
    """The whole page. Empty sections are left out."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p></header>
<main>
{chr(10).join(filter(None, sections))}
</main>
<footer><p>{escape(foot)}</p></footer>
</body>
</html>
"""


def section(heading: str, *pieces: str) -> str:
    """Pieces under a heading; nothing where there are none."""
    body = "\n".join(filter(None, pieces))
    return f"<section>\n<h2>{escape(heading)}</h2>\n{body}\n</section>" if body else ""


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def code(text: str) -> str:
    return f"<p><code>{escape(text)}</code></p>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A few figures, each under its name."""
    return "<dl>" + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in pairs) + "</dl>"


def table(head: Sequence[str], body: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table, nothing where it has no rows; the first cell of a row is its heading."""
    if not body:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in body
    )
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    above = f"<thead><tr>{columns}</tr></thead>" if columns else ""
    # no <caption>: it would be as wide as the table and scroll out of sight with it
    words = f'<p class="soft">{escape(caption)}</p>' if caption else ""
    return words + _scroll(f"<table>{above}<tbody>{rows}</tbody></table>", caption)


def details(summary: str, piece: str) -> str:
    """A piece that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>\n{piece}\n</details>"


def charts(drawings: Sequence[tuple[str, str]]) -> str:
    """SVG drawings side by side where there is room, each with its caption."""
    figures = "\n".join(f"<figure><figcaption>{escape(words)}</figcaption>{svg}</figure>" for svg, words in drawings)
    return f'<div class="charts">\n{figures}\n</div>' if figures else ""


def bar(shares: dict[str, float], meaning: dict[str, str]) -> str:
    """Shares of a whole as one bar, and the list that names its colours."""
    named = [(f"c{index % COLOURS}", name, share) for index, (name, share) in enumerate(shares.items())]
    words = escape(", ".join(f"{name} {share:.1%}" for _, name, share in named), quote=True)
    blocks = "".join(
        f'<span class="{colour}" style="width:{100 * share:.2f}%;background:var(--colour)"></span>'
        for colour, _, share in named
    )
    rows = "".join(
        f'<tr><th scope="row"><span class="key {colour}" style="background:var(--colour)"></span>{escape(name)}</th>'
        f'<td>{share:.1%}</td><td class="prose">{escape(meaning.get(name, ""))}</td></tr>'
        for colour, name, share in named
    )
    return f'<div class="bar" role="img" aria-label="{words}">{blocks}</div>' + _scroll(
        f"<table>{rows}</table>", "shares"
    )


def media(path: Path) -> str:
    """A video or an animated picture, inside the page as base64."""
    kind = MEDIA[path.suffix]
    data = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    name = escape(path.name, quote=True)
    if kind.startswith("image/"):
        return f'<img class="media" src="{data}" alt="{name}">'
    return f'<video controls loop muted playsinline preload="auto" aria-label="{name}" src="{data}"></video>'


def _scroll(table: str, name: str) -> str:
    """Lets a table that is wider than the screen scroll sideways, by touch and by the arrow keys."""
    name = escape(name or "table", quote=True)
    return f'<div class="scroll" role="region" aria-label="{name}" tabindex="0">{table}</div>'
