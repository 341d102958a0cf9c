"""Token attributions as coloured text: in a notebook, or saved as an offline page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechir.errors import MechirError
from mechir.segments import FIVE, Segment
from mechir.views import page

COLUMNS = ("query_id", "doc_id", "position", "token", "segment", "attribution")
NAMES = tuple(str(segment) for segment in FIVE)
SPECIAL = tuple(str(segment) for segment in FIVE if not segment & (Segment.QUERY | Segment.DOC))
LINES = {"query": ("cls", "query", "sep1"), "document": ("doc", "sep2")}
MARKS = ("##", "\u0120", "\u2581")
"""How word pieces say where words begin: "##" goes on with one; the others (byte-level, SentencePiece) begin one."""
TOLD = 5
"""Word pieces of a pair that a terminal is told of."""
BLANK = "\u2423"
"""What is shown of a piece that holds nothing but space."""

Colour = tuple[int, int, int]
RED: tuple[Colour, ...] = ((255, 255, 255), (253, 219, 199), (244, 165, 130), (214, 96, 77), (178, 24, 43))
BLUE: tuple[Colour, ...] = ((255, 255, 255), (209, 229, 240), (146, 197, 222), (67, 147, 195), (33, 102, 172))
"""Even steps from 0 to the end of the scale: the colours of the charts, with white at 0."""

# A notebook brings rules of its own, for a dark theme too, and its rules for tables are the more specific ones.
STYLE = """
.mechir-tokens { background: #fff; color: #1f2328; color-scheme: light; padding: 20px 24px; max-width: 920px;
  box-sizing: border-box; font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; text-align: left; }
.mechir-tokens .title { font-size: 19px; font-weight: 600; margin-bottom: 18px; overflow-wrap: anywhere; }
.mechir-tokens .pair { margin: 0 0 22px; padding: 0 0 22px; border-bottom: 1px solid #e3e6ea; }
.mechir-tokens .pair:last-child { margin: 0; padding: 0; border: 0; }
.mechir-tokens .head { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: center;
  gap: 4px 24px; margin-bottom: 10px; font-size: 13px; color: #59636e; }
.mechir-tokens .ids { overflow-wrap: anywhere; }
.mechir-tokens .ids b { color: #1f2328; font-weight: 600; margin-right: 12px; }
.mechir-tokens .scale { display: inline-flex; align-items: center; gap: 8px; white-space: nowrap; }
.mechir-tokens .bar { width: 160px; border-radius: 3px; font-size: 11px; line-height: 15px; text-align: center;
  box-shadow: inset 0 0 0 1px rgba(0, 0, 0, .15); -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.mechir-tokens .line { display: grid; grid-template-columns: 82px minmax(0, 1fr); margin: 6px 0; }
.mechir-tokens .side { font-size: 13px; line-height: 29px; color: #59636e; }
.mechir-tokens .text { line-height: 29px; overflow-wrap: anywhere; }
.mechir-tokens .t { unicode-bidi: isolate; padding: 3px 0; -webkit-print-color-adjust: exact;
  print-color-adjust: exact; }
.mechir-tokens .t + .t { box-shadow: inset 1px 0 rgba(0, 0, 0, .13); }
.mechir-tokens .t:first-child { padding-left: 4px; border-radius: 4px 0 0 4px; }
.mechir-tokens .t:last-child { padding-right: 4px; border-radius: 0 4px 4px 0; }
.mechir-tokens .t:only-child { border-radius: 4px; }
.mechir-tokens .t:hover { outline: 2px solid #1f2328; }
.mechir-tokens .faint { font-size: 12px; }
.mechir-tokens table { border-collapse: collapse !important; margin: 12px 0 0 82px !important; width: auto !important;
  font-size: 13px !important; font-variant-numeric: tabular-nums; color: #1f2328 !important; border: 0 !important; }
.mechir-tokens tr { background: #fff !important; border: 0 !important; }
.mechir-tokens th, .mechir-tokens td { background: #fff !important; color: #1f2328 !important; border: 0 !important;
  padding: 1px 22px 1px 0 !important; text-align: right !important; font-weight: 400 !important; }
.mechir-tokens th { color: #59636e !important; }
.mechir-tokens .total { font-weight: 600 !important; }
"""


@dataclass(frozen=True)
class Coloured:
    """Coloured text: `html` is a fragment that stands alone, with its style; a notebook shows it, a terminal `text`.

    `title` names the page that `save` writes.
    """

    html: str
    title: str = "Token attribution"
    text: str = ""

    def __repr__(self) -> str:
        return self.text or f"Coloured({self.title!r})"

    def _repr_html_(self) -> str:
        return self.html

    def save(self, file: Path) -> Path:
        """Writes a page that needs no network and runs no script; it is whole or not there.

        Raises:
            MechirError: where it cannot be written.
        """
        return page.write(file, page.document(self.title, "body { margin: 0; background: #fff; }\n", self.html, []))


def coloured(rows: pd.DataFrame, *, title: str = "") -> Coloured:
    """Every pair as two lines of text, each word piece coloured by its attribution.

    Red is positive, white 0, blue negative, full at the largest |attribution| of the pair, which the scale beside it
    says in numbers: colours of two pairs cannot be compared. The number stands in the tooltip, the sums by segment
    below. Pieces of one word stand together.

    Args:
        rows: of `token_attribution`, in any order; pairs are shown in the order in which they appear.
        title: above them.

    Raises:
        MechirError: for an empty frame, missing columns, attributions that are not finite, an unknown segment, and two
            pairs of the same ids.
    """
    _refuse(rows)
    mark = word_mark(rows["token"])
    pairs = [part.sort_values("position") for _, part in rows.groupby(["query_id", "doc_id"], sort=False, dropna=False)]
    heading = f'<div class="title" role="heading" aria-level="2">{escape(title)}</div>\n' if title else ""
    body = "\n".join(_pair(part, mark) for part in pairs)
    # What must hold where a notebook drops the style of what it does not trust is written into the tag.
    own = "background: #fff; color: #1f2328"
    html = f'<div class="mechir-tokens" style="{own}">\n<style>{STYLE}</style>\n{heading}{body}\n</div>'
    return Coloured(html, title or Coloured.title, "\n".join(map(_strongest, pairs)))


def _strongest(part: pd.DataFrame) -> str:
    """The word pieces of a pair with the largest |attribution|, as a terminal shows them."""
    first = part.loc[part["attribution"].abs().sort_values(ascending=False, kind="stable").index].head(TOLD)
    size = float(first["attribution"].abs().max())
    told = [f"{row.token!r} ({row.segment}) {_number(row.attribution, size)}" for row in first.itertuples()]
    ids = f"{part['query_id'].iloc[0]}/{part['doc_id'].iloc[0]}"
    return f"pair {ids!r}: {', '.join(told)}"


def _refuse(rows: pd.DataFrame) -> None:
    missing = [name for name in COLUMNS if name not in rows.columns]
    if missing:
        raise MechirError(
            f"The frame has no column {', '.join(missing)}: give the rows of token_attribution(model, pairs)."
        )
    if rows.empty:
        raise MechirError("There is no token to colour: give the rows of token_attribution(model, pairs).")
    unknown = rows[~rows["segment"].isin(NAMES)]
    if len(unknown):
        raise MechirError(f"Unknown segment '{unknown['segment'].iloc[0]}': write one of {', '.join(NAMES)}.")
    wrong = rows[~np.isfinite(rows["attribution"].to_numpy(dtype=float))]
    if len(wrong):
        raise MechirError(
            f"The attribution of {_named(wrong)} is {wrong['attribution'].iloc[0]}: leave out pairs whose "
            "attributions are not finite, or load the model with dtype='float32'."
        )
    twice = rows[rows.duplicated(["query_id", "doc_id", "position"])]
    if len(twice):
        raise MechirError(f"There are two attributions of {_named(twice)}: give every pair ids of its own.")


def _named(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    return f"position {row['position']} of pair {row['query_id']}/{row['doc_id']}"


def _pair(part: pd.DataFrame, mark: str) -> str:
    """The block of one pair."""
    size = float(part["attribution"].abs().max()) or 1.0
    ids = "".join(f"{name} <b>{escape(str(part[f'{name}_id'].iloc[0]))}</b>" for name in ("query", "doc"))
    lines = []
    for side, segments in LINES.items():
        own = part[part["segment"].isin(segments)]
        if len(own):
            text = _text(own, mark, size)
            lines.append(f'<div class="line"><div class="side">{side}</div><div class="text">{text}</div></div>')
    head = f'<div class="head"><span class="ids">{ids}</span>{_scale(size)}</div>'
    return "\n".join(['<div class="pair">', head, *lines, _sums(part), "</div>"])


def _scale(size: float) -> str:
    stops = ", ".join(_css(_colour(place / 4)) for place in range(-4, 5))
    low, high = _number(-size, size), _number(size, size)
    bar = f'<span class="bar" style="background: linear-gradient(to right, {stops})">0</span>'
    told = f"Colours from blue at {low} over white at 0 to red at {high}, the largest attribution of this pair"
    return f'<span class="scale" role="img" title="{told}" aria-label="{told}">{low} {bar} {high}</span>'


def _sums(part: pd.DataFrame) -> str:
    sums = part.groupby("segment")["attribution"].sum()
    shown = {name: float(sums[name]) for name in NAMES if name in sums}
    size = max(abs(value) for value in shown.values())
    heads = "".join(f"<th>{name}</th>" for name in shown)
    cells = "".join(f"<td>{_number(value, size)}</td>" for value in shown.values())
    total = _number(sum(shown.values()), size)
    return (
        f'<table><thead><tr>{heads}<th class="total">sum</th></tr></thead>'
        f'<tbody><tr>{cells}<td class="total">{total}</td></tr></tbody></table>'
    )


def _text(own: pd.DataFrame, mark: str, size: float) -> str:
    """One line of text: words apart, the pieces of a word together."""
    words: list[list[str]] = []
    before = ""
    for row in own.itertuples():
        token, segment = str(row.token), str(row.segment)
        shown, joined = as_read(token, mark)
        piece = _piece(token if segment in SPECIAL else shown, row, size)
        if joined and segment == before and segment not in SPECIAL:
            words[-1].append(piece)
        else:
            words.append([piece])
        before = segment
    return " ".join(f'<span class="w">{"".join(word)}</span>' for word in words)


def _piece(shown: str, row: Any, size: float) -> str:
    value = float(row.attribution)
    ground = _colour(value / size)
    ink, faint = _ink(ground), ""
    if row.segment in SPECIAL:
        faint = " faint"
        ink = ink if value else (125, 133, 144)
    tip = f"{_number(value, size)}, {row.segment}, position {row.position}: {row.token}"
    style = f"background: {_css(ground)}; color: {_css(ink)}"
    return f'<span class="t{faint}" style="{style}" title="{escape(tip)}">{escape(shown)}</span>'


def word_mark(tokens: Iterable[object]) -> str:
    """Which of `MARKS` the tokenizer writes: the one that most tokens begin with."""
    written = [str(token) for token in tokens]
    # "##" with no letter after it is a word of the text.
    counts = {mark: sum(token.startswith(mark) and token.strip("#") != "" for token in written) for mark in MARKS}
    return max(MARKS, key=lambda mark: counts[mark])


def as_read(token: str, mark: str) -> tuple[str, bool]:
    """What is read of a word piece, and whether it goes on with the word before."""
    if mark == "##":
        joined = token.startswith(mark) and len(token) > len(mark)
        return token[len(mark) :] if joined else token, joined
    text = token.removeprefix(mark)
    return (_decoded(text) if mark == "\u0120" else text).strip() or BLANK, text == token


def _decoded(text: str) -> str:
    """Byte-level text as it was; as it stands where a piece ends within a character."""
    try:
        return bytes(BYTES[letter] for letter in text).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return text


def _bytes() -> Iterator[tuple[str, int]]:
    """The letter that byte-level tokenizers write for each byte: itself where it can be printed, else one past 255."""
    others = 256
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174:
            yield chr(byte), byte
        else:
            yield chr(others), byte
            others += 1


BYTES = dict(_bytes())


def _colour(share: float) -> Colour:
    """The colour of a share of the scale, from -1 (blue) over 0 (white) to 1 (red)."""
    stops = RED if share > 0 else BLUE
    place = min(abs(share), 1.0) * (len(stops) - 1)
    first = min(int(place), len(stops) - 2)
    red, green, blue = (
        round(a + (place - first) * (b - a)) for a, b in zip(stops[first], stops[first + 1], strict=True)
    )
    return red, green, blue


def _ink(ground: Colour) -> Colour:
    """Black or white, whichever stands out more (WCAG 2 contrast)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in ground)]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
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
