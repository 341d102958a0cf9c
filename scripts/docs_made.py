"""What was made for the documentation already: a registry, frames of other computations, and a note of the commands.

All of it lies in `build/docs`. `made.json` has of every name the command; of a run also the id, and the ids of the runs
that it asked for on its way.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from mechir.registry.queries import matching
from mechir.registry.runs import Run, find_run
from scripts.docs_frames import digest
from scripts.docs_markers import Wrong
from scripts.docs_runs import COMMANDS, RUNS

REGISTRY = Path(__file__).parent.parent / "build/docs"
MADE = REGISTRY / "made.json"
SCALARS = (str, int, float)


def noted() -> dict[str, list[str]]:
    """What is there as it would be made now: by name the command, and of a run the ids, its own first."""
    runs = json.loads(MADE.read_text(encoding="utf-8")) if MADE.is_file() else {}
    return {name: runs[name] for name in COMMANDS if runs.get(name, [""])[0] == command(name)}


def note(name: str, *ids: str) -> None:
    """Notes that it is there."""
    MADE.parent.mkdir(parents=True, exist_ok=True)
    runs = noted() | {name: [command(name), *ids]}
    MADE.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


def command(name: str) -> str:
    """How it is made; of the code on a page with the hash of that code."""
    made = COMMANDS[name]
    return f"{made} {digest(made.split()[1])}" if made.startswith("code ") else made


def run_of(name: str) -> Run:
    """The run of a name that is noted."""
    return find_run(REGISTRY, noted()[name][1])


def frame_file(name: str) -> Path:
    """Where a frame that is no run's lies."""
    return REGISTRY / "frames" / f"{name}.parquet"


def keep(name: str, frames: Mapping[str, pd.DataFrame]) -> None:
    """Stores frames: NAME.parquet of the one without a name, NAME.OTHER.parquet of the others."""
    for own, frame in frames.items():
        file = frame_file(f"{name}.{own}" if own else name)
        file.parent.mkdir(parents=True, exist_ok=True)
        texts = {column: str for column in frame if frame[column].dtype == object}
        frame.astype(texts).to_parquet(file, index=False)


class Made(Mapping[str, pd.DataFrame]):
    """The frames that markers may name, each read when it is asked for.

    NAME is the summary of a run, or another frame; NAME.findings is what the run and those on its way found,
    NAME.record its record, in one row, NAME.PART the frame PART that is stored with it.
    """

    def __init__(self) -> None:
        self.noted = noted()
        self._read: dict[str, pd.DataFrame] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.noted)

    def __len__(self) -> int:
        return len(self.noted)

    def __contains__(self, name: object) -> bool:
        return str(name).partition(".")[0] in self.noted

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self._read:
            self._read[name] = self._frame(*name.partition(".")[::2])
        return self._read[name]

    def _frame(self, name: str, part: str) -> pd.DataFrame:
        if name not in RUNS:
            return _stored(frame_file(f"{name}.{part}" if part else name))
        _, id_, *on_its_way = self.noted[name]
        run = find_run(REGISTRY, id_)
        if not part:
            return run.summary
        if part == "findings":
            return matching(REGISTRY, runs=[id_, *on_its_way])
        if part == "record":
            return pd.DataFrame([{key: value for key, value in run.record.items() if isinstance(value, SCALARS)}])
        return _stored(run.path / f"{part}.parquet")


def _stored(file: Path) -> pd.DataFrame:
    if not file.is_file():
        raise Wrong(f"There is no frame '{file.stem}' among what was made.")
    return pd.read_parquet(file)


def alone(name: str, folder: Path) -> Path:
    """A registry in a folder with what one run made and nothing else."""
    (folder / "findings").mkdir()
    for id_ in noted()[name][1:]:
        shutil.copytree(REGISTRY / "runs" / id_, folder / "runs" / id_)
        for entry in (REGISTRY / "findings").glob(f"{id_}.*"):
            shutil.copy2(entry, folder / "findings")
    return folder
