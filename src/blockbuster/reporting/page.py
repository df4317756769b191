"""Pages that stand alone: HTML with its style and pictures in it, without scripts, for screen and paper."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "LOGGED",
    "MARK",
    "Section",
    "cards",
    "facts",
    "figure",
    "lanes",
    "legend",
    "page",
    "paragraph",
    "ramp",
    "side_by_side",
    "swatch",
    "table",
]

# By which pages are told from other files, and those that tell of times from those that do not.
MARK = '<meta name="generator" content="blockbuster report">'
LOGGED = '<meta name="generator" content="blockbuster report with times">'

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f26; --soft: #5d6470; --paper: #fff; --panel: #f4f5f7; --line: #dcdfe4;
  --accent: #1a7f6c; --warn: #b3541e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --soft: #9aa1ad; --paper: #14161b; --panel: #1e2128;
  --line: #343943; --accent: #4cc3a9; --warn: #f0985e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; color: var(--ink); background: var(--paper);
  font: 15px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 2.6rem 0 .6rem; padding-bottom: .25rem; font-size: 1.2rem; border-bottom: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 48rem; }
.soft, figcaption, caption { color: var(--soft); }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1.4rem 0 0; }
.card { padding: .7rem .9rem; background: var(--panel); border-radius: .5rem; }
.card b { display: block; font-size: 1.35rem; line-height: 1.3; font-weight: 650; }
.card span { color: var(--soft); font-size: .87rem; }
.card.good b { color: var(--accent); }
.card.bad b { color: var(--warn); }
.figures { display: flex; flex-wrap: wrap; gap: 1.6rem; align-items: flex-start; }
figure { margin: .8rem 0; max-width: 100%; }
figure img { display: block; max-width: 100%; height: auto; }
img.hard { image-rendering: pixelated; }
figcaption { margin-top: .45rem; font-size: .87rem; max-width: 40rem; }
.scroll { overflow-x: auto; }
table { margin: .8rem 0; border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-size: .87rem; padding-bottom: .3rem; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; white-space: nowrap; }
.legend { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem 1rem; margin-top: .45rem; font-size: .87rem;
  color: var(--soft); }
.ramp { display: inline-block; width: 8rem; height: .75rem; margin: 0 .45rem; vertical-align: middle;
  border-radius: 2px; }
.swatch { display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; vertical-align: -1px;
  border-radius: 2px; }
.lane { display: flex; align-items: center; gap: .7rem; margin: 2px 0; font-size: .82rem; }
.lane span { flex: 0 0 11rem; color: var(--soft); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.lane img { flex: 1; min-width: 0; height: .95rem; background: var(--panel); }
.ticks { display: flex; justify-content: space-between; margin-left: 11.7rem; font-size: .82rem; color: var(--soft); }
@media print { body { max-width: none; padding: 0; font-size: 10.5pt; } h2 { break-after: avoid; }
  figure, table, .cards, .lane { break-inside: avoid; } .card, .lane img { border: 1px solid var(--line); }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes
    ----------
    title : str
        Its heading.
    parts : tuple of str
        HTML.
    """

    title: str
    parts: tuple[str, ...]


def page(title: str, subtitle: str, head: Sequence[str], sections: Iterable[Section], *, mark: str = MARK) -> str:
    """A whole page.

    Parameters
    ----------
    title, subtitle : str
        Words.
    head : sequence of str
        HTML between the title and the first section.
    mark : str
        An element of the head.
    """
    body = "\n".join(
        f"<section>\n<h2>{_text(one.title)}</h2>\n{chr(10).join(one.parts)}\n</section>" for one in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{mark}
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{_text(title)}</h1>
<p class="soft">{_text(subtitle)}</p>
{chr(10).join(head)}
</header>
<main>
{body}
</main>
</body>
</html>
"""


def paragraph(words: str) -> str:
    """Words.

    Examples
    --------
    >>> paragraph("a < b")
    '<p>a &lt; b</p>'
    """
    return f"<p>{_text(words)}</p>"


def cards(several: Iterable[tuple[str, str, str]]) -> str:
    """Figures to see first: a value, what it is, and "good", "bad" or ""."""
    made = (
        f'<div class="card {_text(kind)}"><b>{_text(value)}</b><span>{_text(name)}</span></div>'
        for value, name, kind in several
    )
    return f'<div class="cards">{"".join(made)}</div>'


def facts(told: Mapping[str, Any]) -> str:
    """Names and values."""
    rows = "".join(
        f"<tr><th>{_text(name)}</th><td><code>{_text(value)}</code></td></tr>" for name, value in told.items()
    )
    return f'<div class="scroll"><table>{rows}</table></div>'


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, n_words: int = 1, caption: str = "") -> str:
    """A table, whose columns but the first `n_words` are numbers."""
    kinds = ["" if place < n_words else ' class="number"' for place in range(len(columns))]
    body = "".join(f"<tr>{_cells('td', kinds, row)}</tr>" for row in rows)
    words = f"<caption>{_text(caption)}</caption>" if caption else ""
    head = f"<thead><tr>{_cells('th', kinds, columns)}</tr></thead>"
    return f'<div class="scroll"><table>{words}{head}<tbody>{body}</tbody></table></div>'


def _cells(tag: str, kinds: Sequence[str], row: Sequence[Any]) -> str:
    return "".join(f"<{tag}{kind}>{_text(value)}</{tag}>" for kind, value in zip(kinds, row, strict=True))


def figure(picture: bytes, caption: str, *, legend_: str = "", hard: bool = True) -> str:
    """A picture with words below.

    Parameters
    ----------
    hard : bool
        Whether its pixels are to be seen as they are.
    """
    kind = ' class="hard"' if hard else ""
    words = f"<figcaption>{_text(caption)}</figcaption>"
    return f'<figure><img{kind} alt="{_text(caption)}" src="{_data(picture)}">{legend_}{words}</figure>'


def side_by_side(figures: Iterable[str]) -> str:
    """Figures in a row, as far as there is room."""
    return f'<div class="figures">{"".join(figures)}</div>'


def lanes(rows: Iterable[tuple[str, bytes]], ticks: Sequence[str]) -> str:
    """Named strips below each other, over an axis with some ticks."""
    made = "".join(
        f'<div class="lane"><span title="{_text(name)}">{_text(name)}</span>'
        f'<img class="hard" alt="{_text(name)} at work" src="{_data(png)}"></div>'
        for name, png in rows
    )
    below = "".join(f"<span>{_text(tick)}</span>" for tick in ticks)
    return f'<div class="lanes">{made}<div class="ticks">{below}</div></div>'


def legend(*parts: str) -> str:
    """What the colours of a picture mean."""
    return f'<div class="legend">{"".join(parts)}</div>'


def ramp(colours: Sequence[Sequence[int]], low: str, high: str) -> str:
    """Colours from a low to a high value."""
    stops = ", ".join(map(_rgb, colours))
    return (
        f'<span>{_text(low)}<i class="ramp" style="background:linear-gradient(90deg, {stops})"></i>{_text(high)}</span>'
    )


def swatch(colour: Sequence[int], words: str) -> str:
    """One colour."""
    return f'<span><i class="swatch" style="background:{_rgb(colour)}"></i>{_text(words)}</span>'


def _rgb(colour: Sequence[int]) -> str:
    return f"rgb({', '.join(map(str, colour))})"


def _data(picture: bytes) -> str:
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _text(value: Any) -> str:
    return html.escape(str(value))
