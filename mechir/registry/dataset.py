"""A frame as a folder that `datasets.load_dataset` reads: Parquet, and a card that describes it."""

from __future__ import annotations

import html
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mechir.measures import ROLES, TERMS
from mechir.registry.evidence import EVIDENCE
from mechir.registry.findings import MEANINGS

FILE = "data/train-00000-of-00001.parquet"
"""The path at which the hub's viewer and `datasets` expect the rows of the split `train`."""
NAME = "Findings about a neural reranker"
LISTED = 20
"""Runs, models and so on that the card names; the table holds all."""
KINDS = {"string": "string", "large_string": "large_string", "double": "float64", "int64": "int64", "bool": "bool"}
"""Arrow's types under the names of `datasets`; all others have one name in both."""


def write_dataset(frame: pd.DataFrame, folder: Path) -> None:
    """Writes `data/*.parquet` and `README.md` into an empty folder; sites must be text (`as_text`)."""
    from huggingface_hub import DatasetCardData

    (folder / FILE).parent.mkdir()
    arrow = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata()
    pq.write_table(arrow, folder / FILE)
    features = [{"name": field.name, "dtype": KINDS.get(str(field.type), str(field.type))} for field in arrow.schema]
    splits = [{"name": "train", "num_bytes": arrow.nbytes, "num_examples": len(frame)}]
    sizes = {"download_size": (folder / FILE).stat().st_size, "dataset_size": arrow.nbytes}
    info = {"features": features, "splits": splits, **sizes}
    configs = [{"config_name": "default", "data_files": [{"split": "train", "path": FILE}]}]
    tags = ["mechanistic-interpretability", "information-retrieval", "mechir"]
    card = DatasetCardData(pretty_name=NAME, tags=tags, configs=configs, dataset_info=info)
    text = f"---\n{card.to_yaml()}\n---\n\n{_description(frame)}"
    (folder / "README.md").write_text(text, encoding="utf-8")


def _description(frame: pd.DataFrame) -> str:
    """The card's text: the meaning of rows and columns, and the sources of the numbers."""
    written = f"{len(frame):,} rows, written by mechir-encoders {metadata.version('mechir-encoders')}."
    lines = [f"# {NAME if 'site' in frame else 'A table of mechir'}", "", written, ""]
    if "site" in frame:
        lines += ["A row is what is known of one component of a model, on one collection. Sites count layers and units"]
        lines += ["from 0: h8.1 is head 1 of layer 8.", ""]
    lines += ["| column | type | what it is |", "|---|---|---|"]
    measures = {name: f"the value of the measure: {measure}" for name, measure in EVIDENCE.items()}
    meanings = {name: text.replace("|", "\\|") for name, text in (MEANINGS | measures).items()}
    lines += [f"| {_safe(name)} | {_safe(frame[name].dtype)} | {meanings.get(str(name), '')} |" for name in frame]
    for column, known in (("role", ROLES), ("term", TERMS)):
        lines += ["", f"`{column.upper()}S`: {', '.join(known)}."] * (column in frame)
    lines += ["", "## Where it comes from", ""]
    for column in ("experiment", "model", "model_fingerprint", "collection", "collection_sha256", "run_id"):
        if column in frame:
            values = sorted({str(value) for value in frame[column] if value})
            more = ", ..." * (len(values) > LISTED)
            lines.append(f"* {column} ({len(values)}): {', '.join(map(_safe, values[:LISTED]))}{more}")
    return "\n".join([*lines, ""])


def _safe(text: Any) -> str:
    """Escapes text for Markdown, in a cell of a table too."""
    flat = html.escape(" ".join(str(text).split()), quote=False)
    return "".join(f"\\{letter}" if letter in "\\`*_[]()|#!~$" else letter for letter in flat)
