"""Executes the notebooks of the documentation and stores what they show.

Run: python scripts/notebooks.py [NOTEBOOK ...] [--into DIR]

Each runs from the top in a kernel of this Python, on this checkout, with one thread and without a network, in an empty
folder. By default all of docs/notebooks/, and the files themselves are written; only if no cell fails. Of how and
where they ran nothing is kept.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

from mechir.atomic import whole

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "notebooks"
SECONDS = 600
"""Longer than any cell takes."""
SURROUNDINGS = {
    "PYTHONPATH": str(ROOT),
    "PYTHONWARNINGS": "ignore:IProgress not found",  # bars need ipywidgets, and are no result
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def main() -> None:
    """Executes each and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", type=Path, nargs="*", default=sorted(FOLDER.glob("*.ipynb")))
    parser.add_argument("--into", type=Path, default=None, metavar="DIR")
    arguments = parser.parse_args()
    for file in arguments.notebooks:
        target = (arguments.into or file.parent) / file.name
        notebook = executed(nbformat.read(file, as_version=4))
        with whole(target) as part:
            nbformat.write(notebook, part)
        print(target)


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the outputs of now; a cell that fails raises."""
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": folder}})
        kernel = client.create_kernel_manager()
        kernel.kernel_spec_manager = KernelSpecManager(kernel_dirs=[])  # whatever else is installed, this Python
        kernel.transport, kernel.ip = "ipc", f"{folder}/kernel"  # nothing listens on a network
        client.execute(env=os.environ | SURROUNDINGS | {"IPYTHONDIR": folder})
    return stripped(notebook)


def stripped(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what says when, where and by which Python it ran."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
    return notebook


if __name__ == "__main__":
    main()
