"""One HTML file that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape

import cv2
from numpy.typing import NDArray

STYLE_SHEET = """
body { font: 1rem/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 0 auto; padding: 1rem;
  max-width: 72rem }
h1 { font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; border-top: 1px solid #d0d7de; padding-top: 1rem }
a { color: #0550ae }
nav a { display: inline-block; padding: .3rem .8rem .3rem 0 }
p { max-width: 46rem }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem }
figure { margin: 0 }
figure img { width: 100%; height: auto; display: block }
figcaption { font-size: .9rem; color: #444c56; overflow-wrap: anywhere; white-space: pre-line }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-bottom: .5rem }
.caption { font-size: .9rem; color: #444c56; margin: 1rem 0 .3rem }
.wide { grid-column: 1 / -1 }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #d0d7de; text-align: right }
th:first-child, td:first-child { text-align: left }
thead th { background: #f6f8fa }
summary { cursor: pointer; padding: .3rem 0 }
"""
# If markup in a file name or class slipped through the escaping, the browser would still load and run nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Page:
    """An HTML page, section after section. All texts are escaped.

    Args:
        title: Title of the page.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.sections: list[str] = []
        self.parts: list[str] = []

    def section(self, title: str, *paragraphs: str) -> None:
        """Begin a section."""
        self.sections.append(title)
        self.parts.append(f'<h2 id="{self._id(title)}">{escape(title)}</h2>')
        self.text(*paragraphs)

    def text(self, *paragraphs: str) -> None:
        """Add paragraphs."""
        self.parts += [f'<p>{escape(paragraph)}</p>' for paragraph in paragraphs]

    def figures(self, figures: Sequence[tuple[bytes | NDArray, str, str]], wide: bool = False) -> None:
        """Add pictures, side by side where there is room.

        Args:
            figures: For each an SVG file or BGR pixels, which become a JPEG; what is to be seen, in words, for those
                who do not see it; a caption, or ''.
            wide: Each over the whole width.
        """
        self.parts.append('<div class="figures">')
        for picture, words, caption in figures:
            kind, data = ('svg+xml', picture) if isinstance(picture, bytes) else ('jpeg', encode_jpeg(picture))
            uri = f'data:image/{kind};base64,{base64.b64encode(data).decode()}'
            caption = f'<figcaption>{escape(caption)}</figcaption>' if caption else ''
            style = ' class="wide"' if wide else ''
            self.parts.append(f'<figure{style}><img alt="{escape(words)}" src="{uri}">{caption}</figure>')
        self.parts.append('</div>')

    def table(self, caption: str, header: Sequence[str], rows: Sequence[Sequence], folded: bool = False) -> None:
        """Add a table whose first column names the row; if ``folded``, it opens at a click."""
        head = ''.join(f'<th scope="col">{escape(str(cell))}</th>' for cell in header)
        body = ''.join(
            f'<tr><th scope="row">{escape(str(first))}</th>{"".join(f"<td>{escape(str(cell))}</td>" for cell in rest)}'
            '</tr>\n'
            for first, *rest in rows
        )
        table = (
            f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption)}"><table>'
            f'<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'
        )
        # The caption stands outside of the table, which may be wider than a phone.
        self.parts.append(
            f'<details><summary>{escape(caption)}</summary>{table}</details>'
            if folded
            else f'<p class="caption">{escape(caption)}</p>{table}'
        )

    def render(self) -> str:
        """The whole page."""
        links = ''.join(f'<a href="#{self._id(title)}">{escape(title)}</a>' for title in self.sections)
        body = '\n'.join(self.parts)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{escape(self.title)}</title>\n<style>{STYLE_SHEET}</style>\n</head>\n<body>\n<main>\n'
            f'<h1>{escape(self.title)}</h1>\n<nav aria-label="Sections">{links}</nav>\n{body}\n'
            '</main>\n</body>\n</html>\n'
        )

    @staticmethod
    def _id(title: str) -> str:
        return re.sub(r'\W+', '-', title.lower()).strip('-')


def encode_jpeg(image: NDArray) -> bytes:
    """Encode BGR pixels (H, W, 3)."""
    return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
