"""Frames and charts of runs as files, by their suffix."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pandas as pd

from mechir.atomic import written
from mechir.errors import MechirError
from mechir.registry.dataset import write_dataset
from mechir.registry.frames import SiteFrame, as_text, seen
from mechir.registry.runs import Run

TABLES = (".csv", ".jsonl", ".tex")
PICTURES = (".png", ".svg", ".pdf")
KNOWN = f"{', '.join(TABLES)} or a folder for a table, {', '.join(PICTURES)} for the chart of a run"


def export(content: pd.DataFrame | Run, to: Path | str, *, digits: int = 2) -> Path:
    """Writes a frame, or the summary or chart of a run: `mi.export(mi.findings(role="matching"), "heads.tex")`.

    Args:
        content: a frame, or a finished run, which is its summary as a table and its chart as a picture. In LaTeX of a
            run its `table`, and of findings and links the columns that they show.
        to: the file, by its suffix: `.csv`, `.jsonl` (an object a line), `.tex` (a table for booktabs), `.png`, `.svg`,
            `.pdf`; or a folder, new or empty, for a dataset that `datasets.load_dataset` reads.
        digits: decimals in a LaTeX table.

    Returns:
        `to`, which is written whole or not at all.

    Raises:
        MechirError: for an unknown suffix, a folder that holds something, a run that is not finished or has no chart, a
            picture of a frame, a path that cannot be written.
    """
    target, folder = Path(to), refuse_unknown(to)
    whole = content.summary if isinstance(content, Run) else content  # refuses a run that is not finished
    frame = as_text(_shown(content) if target.suffix == ".tex" else whole)
    if target.suffix in PICTURES and not folder:
        picture = _picture(content, target)
        return written(target, lambda file: file.write_bytes(picture))
    return _dataset(frame, target) if folder else written(target, lambda file: _table(frame, file, target, digits))


def _shown(content: pd.DataFrame | Run) -> pd.DataFrame:
    """What a reader looks at: of a run its table, of a frame of the registry its visible columns."""
    if isinstance(content, Run):
        return content.table
    return content[seen(content)] if isinstance(content, SiteFrame) else content


def refuse_unknown(to: Path | str) -> bool:
    """Whether this is a folder; raises for a file of an unknown suffix."""
    target = Path(to)
    folder = str(to).endswith(("/", "\\")) or target.is_dir() or not target.suffix
    if not folder and target.suffix not in TABLES + PICTURES:
        raise MechirError(f"Cannot export to '{target}': write {KNOWN}.")
    return folder


def _table(frame: pd.DataFrame, file: Path, target: Path, digits: int) -> None:
    if target.suffix == ".csv":
        frame.to_csv(file, index=False)
    elif target.suffix == ".jsonl":
        frame.to_json(file, orient="records", lines=True, force_ascii=False, double_precision=15)
    else:
        from mechir.views import latex

        file.write_text(latex.table(frame, digits), encoding="utf-8")


def _picture(content: pd.DataFrame | Run, target: Path) -> bytes:
    if not isinstance(content, Run):
        raise MechirError(f"A frame has no chart for '{target}': give a run, or write {', '.join(TABLES)} or a folder.")
    spec = content.path / "chart.json"
    if not spec.is_file():
        raise MechirError(
            f"Run {content.id} has no chart.json, as an older mechir drew it: start it again with fresh=True."
        )
    from mechir.views import charts

    return charts.picture(json.loads(spec.read_text(encoding="utf-8")), target.suffix)


def _dataset(frame: pd.DataFrame, target: Path) -> Path:
    """Writes the folder whole or not at all."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise MechirError(f"'{target}' holds something already: give a folder that is new or empty.")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            made = Path(scratch) / "dataset"
            made.mkdir()
            write_dataset(frame, made)
            made.rename(target)
    except OSError as error:
        raise MechirError(f"Cannot write '{target}' ({error.strerror}): give another folder.") from error
    return target
