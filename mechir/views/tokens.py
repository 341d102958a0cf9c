"""Token attributions as coloured text: in a notebook, or saved as an offline page."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from mechir.errors import MechirError
from mechir.methods.tokens import SUM_OF
from mechir.segments import PARTS, Segment
from mechir.views import page

COLUMNS = ("query_id", "doc_id", "position", "token", "segment", "attribution")
NAMES = tuple(str(segment) for segment in PARTS)
SPECIAL = tuple(str(segment) for segment in PARTS if not segment & (Segment.QUERY | Segment.DOC))
LINES = {
    "query": ("system", "instruction", "cls", "query", "sep1"),
    "document": ("doc", "sep2", "suffix", "decoder"),
}
MARKS = ("##", "\u0120", "\u2581")
"""The marks of tokenizers: "##" continues a word; the others (byte-level, SentencePiece) begin one."""
PRINTED = 5
"""Word pieces of a pair that a terminal prints."""
BLANK = "\u2423"
"""Stands for a piece that holds nothing but space."""
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {chr(byte): byte for byte in PRINTABLE} | {
    chr(256 + place): byte for place, byte in enumerate(sorted({*range(256)} - {*PRINTABLE}))
}
"""The byte that each letter of a byte-level tokenizer stands for: itself where it can be printed."""

Colour = tuple[int, ...]
RED = ((255, 255, 255), (253, 219, 199), (244, 165, 130), (214, 96, 77), (178, 24, 43))
BLUE = ((255, 255, 255), (209, 229, 240), (146, 197, 222), (67, 147, 195), (33, 102, 172))
"""Even steps from 0 to the end of the scale: the colours of the charts, with white at 0."""


def coloured(rows: pd.DataFrame, *, title: str = "") -> page.Drawing:
    """Every pair as two lines of text, each word piece coloured by its attribution.

    Red is positive, white 0, blue negative, full at the largest |attribution| of the pair, given by the scale beside
    it: colours of two pairs cannot be compared. Numbers stand in tooltips, sums by segment below.

    Args:
        rows: of `token_attribution`, in any order; pairs are shown in the order in which they appear. What their sum
            is of stands in `rows.attrs["sum_of"]`.
        title: above them.

    Raises:
        MechirError: for an empty frame, missing columns, attributions that are not finite, an unknown segment, and two
            pairs of the same ids.
    """
    _refuse(rows)
    mark = word_mark(rows["token"])
    of = str(rows.attrs.get(SUM_OF, "of the attributions"))
    pairs = [part.sort_values("position") for _, part in rows.groupby(["query_id", "doc_id"], sort=False, dropna=False)]
    heading = f'<div class="title" role="heading" aria-level="2">{escape(title)}</div>\n' if title else ""
    body = "\n".join(_pair(part, mark, of) for part in pairs)
    # A notebook's rules for tables are the more specific ones; in the tag is what must hold where it drops a style.
    style = f"<style>\n{page.static('tokens.css')}</style>"
    html = f'<div class="mechir-tokens" style="background: #fff; color: #1f2328">\n{style}\n{heading}{body}\n</div>'
    text = "\n".join(_strongest(part, of) for part in pairs)
    return page.Drawing(html, text, title or "Token attribution", ground="background: #fff; ")


def _strongest(part: pd.DataFrame, of: str) -> str:
    """The word pieces of a pair with the largest |attribution|, and their sum, as a terminal shows them."""
    first = part.sort_values("attribution", key=abs, ascending=False, kind="stable").head(PRINTED)
    size = float(first["attribution"].abs().max())
    pieces = [f"{row.token!r} ({row.segment}) {_number(row.attribution, size)}" for row in first.itertuples()]
    ids = f"{part['query_id'].iloc[0]}/{part['doc_id'].iloc[0]}"
    total = float(part["attribution"].sum())
    return f"pair {ids!r}: {', '.join(pieces)}; sum {_number(total, abs(total))} ({of})"


def _refuse(rows: pd.DataFrame) -> None:
    if missing := [name for name in COLUMNS if name not in rows.columns]:
        raise MechirError(
            f"The frame has no column {', '.join(missing)}: give the rows of token_attribution(model, pairs)."
        )
    if rows.empty:
        raise MechirError("There is no token to colour: give the rows of token_attribution(model, pairs).")
    if len(unknown := rows[~rows["segment"].isin(NAMES)]):
        raise MechirError(f"Unknown segment '{unknown['segment'].iloc[0]}': write one of {', '.join(NAMES)}.")
    if len(wrong := rows[~np.isfinite(rows["attribution"].to_numpy(dtype=float))]):
        raise MechirError(
            f"The attribution of {_named(wrong)} is {wrong['attribution'].iloc[0]}: leave out pairs whose "
            "attributions are not finite, or load the model with dtype='float32'."
        )
    if len(twice := rows[rows.duplicated(["query_id", "doc_id", "position"])]):
        raise MechirError(f"There are two attributions of {_named(twice)}: give every pair ids of its own.")


def _named(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    return f"position {row['position']} of pair {row['query_id']}/{row['doc_id']}"


def _pair(part: pd.DataFrame, mark: str, of: str) -> str:
    """The HTML of one pair."""
    size = float(part["attribution"].abs().max()) or 1.0
    ids = "".join(f"{name} <b>{escape(str(part[f'{name}_id'].iloc[0]))}</b>" for name in ("query", "doc"))
    lines = []
    for side, segments in LINES.items():
        pieces = part[part["segment"].isin(segments)]
        if len(pieces):
            text = _text(pieces, mark, size)
            lines.append(f'<div class="line"><div class="side">{side}</div><div class="text">{text}</div></div>')
    head = f'<div class="head"><span class="ids">{ids}</span>{_scale(size)}</div>'
    return "\n".join(['<div class="pair">', head, *lines, _sums(part, of), "</div>"])


def _scale(size: float) -> str:
    stops = ", ".join(_css(_colour(place / 4)) for place in range(-4, 5))
    low, high = _number(-size, size), _number(size, size)
    bar = f'<span class="bar" style="background: linear-gradient(to right, {stops})">0</span>'
    label = f"Colours from blue at {low} over white at 0 to red at {high}, the largest attribution of this pair"
    return f'<span class="scale" role="img" title="{label}" aria-label="{label}">{low} {bar} {high}</span>'


def _sums(part: pd.DataFrame, of: str) -> str:
    """A table of the sums by segment and over all, and what the last is of."""
    sums = part.groupby("segment")["attribution"].sum()
    shown = {name: float(sums[name]) for name in NAMES if name in sums}
    size = max(abs(value) for value in shown.values())
    heads = "".join(f"<th>{name}</th>" for name in shown)
    cells = "".join(f"<td>{_number(value, size)}</td>" for value in shown.values())
    total = _number(sum(shown.values()), size)
    return (
        f'<table><thead><tr>{heads}<th class="total">sum</th></tr></thead>'
        f'<tbody><tr>{cells}<td class="total">{total}</td></tr></tbody></table>'
        f'<div class="side sum">sum: {escape(of)}</div>'
    )


def _text(pieces: pd.DataFrame, mark: str, size: float) -> str:
    """One line of text: words apart, the pieces of a word together."""
    words: list[str] = []
    before = ""
    for row in pieces.itertuples():
        token, special = str(row.token), row.segment in SPECIAL
        shown, joined = as_read(token, mark)
        piece = _piece(token if special else shown, row, size)
        if joined and row.segment == before and not special:
            words[-1] += piece
        else:
            words.append(piece)
        before = row.segment
    return " ".join(f'<span class="w">{word}</span>' for word in words)


def _piece(shown: str, row: Any, size: float) -> str:
    value, special = float(row.attribution), row.segment in SPECIAL
    ground = _colour(value / size)
    ink = (125, 133, 144) if special and not value else _ink(ground)
    faint = " faint" if special else ""
    tip = f"{_number(value, size)}, {row.segment}, position {row.position}: {row.token}"
    style = f"background: {_css(ground)}; color: {_css(ink)}"
    return f'<span class="t{faint}" style="{style}" title="{escape(tip)}">{escape(shown)}</span>'


def word_mark(tokens: Iterable[object]) -> str:
    """The one of `MARKS` that most tokens begin with."""
    # "##" with no letter after it is a word of the text.
    written = [text for text in map(str, tokens) if text.strip("#")]
    return max(MARKS, key=lambda mark: sum(text.startswith(mark) for text in written))


def as_read(token: str, mark: str) -> tuple[str, bool]:
    """The text of a word piece without its mark, and whether it continues the word before it."""
    if mark == "##":
        joined = token.startswith(mark) and len(token) > len(mark)
        return token[len(mark) :] if joined else token, joined
    text = shown = token.removeprefix(mark)
    if mark == "\u0120":  # letters stand for bytes; a piece may end within a character
        with contextlib.suppress(KeyError, UnicodeDecodeError):
            shown = bytes(BYTES[letter] for letter in text).decode("utf-8")
    return shown.strip() or BLANK, text == token


def _colour(share: float) -> Colour:
    """The colour of a share of the scale, from -1 (blue) over 0 (white) to 1 (red)."""
    stops = RED if share > 0 else BLUE
    place = abs(share) * (len(stops) - 1)
    return tuple(round(np.interp(place, range(len(stops)), channel)) for channel in zip(*stops, strict=True))


def _ink(ground: Colour) -> Colour:
    """Black or white, whichever stands out more (WCAG 2 contrast)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in ground)]
    light = np.dot([0.2126, 0.7152, 0.0722], linear)
    return (0, 0, 0) if (light + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)


def _css(colour: Colour) -> str:
    return f"#{bytes(colour).hex()}"


def _number(value: float, size: float) -> str:
    """Signed, to three digits of `size`; 0 without a sign."""
    if 0 < size < 1e-4:
        return f"{value:+.2e}".replace("-", "\u2212") if value else "0"
    digits = max(0, 2 - math.floor(math.log10(size))) if size else 0
    written = f"{value:+.{digits}f}".replace("-", "\u2212")
    return written if written.strip("+\u22120.") else "0"
