"""Whether the runs of two registries are the same, byte for byte: `same_frames.py ONE OTHER`."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from mechir.registry.runs import runs


def bytes_of(frame: pd.DataFrame) -> bytes:
    """The frame, sorted, as the bytes of its columns."""
    keys = [name for name in frame if frame[name].map(lambda cell: isinstance(cell, str | int | float)).all()]
    rows = frame.sort_values(keys, kind="stable", ignore_index=True)
    return rows.to_csv().encode() + str(rows.dtypes.to_dict()).encode()  # writes every digit of a number


def main() -> None:
    one, other = ({run.id: run for run in runs(Path(folder))} for folder in sys.argv[1:3])
    if one.keys() != other.keys() or not one:
        sys.exit(f"other runs: {sorted(one)} and {sorted(other)}")
    for key in one:
        for name in ("rows", "summary"):
            here, there = (bytes_of(getattr(run[key], name)) for run in (one, other))
            if here != there:
                sys.exit(f"run {key}: other {name}")
        computed = other[key].computed
        print(
            f"run {key}: the same rows and summary; {len(other[key].done())} units, {computed['hosts']}, "
            f"{computed['devices']}, {computed['seconds']} s, {computed.get('peak_gb')} GB at most"
        )


if __name__ == "__main__":
    main()
