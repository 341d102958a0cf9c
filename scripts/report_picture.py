"""The picture of the report in the README: the top of the page that `mechir run` writes, as Chromium shows it.

Run: python scripts/report_picture.py (after `bash scripts/remake_docs --only pathway`)
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from mechir.reporting.report import report
from scripts.docs_made import alone

PICTURE = Path(__file__).parent.parent / "docs" / "figures" / "report.png"
SIZE = "1180,900"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1")


def main() -> None:
    """Writes the report of the pathway's runs alone, and its picture."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        raise SystemExit("The picture of the report needs Chromium: install it, or leave docs/figures/report.png.")
    with tempfile.TemporaryDirectory() as folder:
        page = report(registry=alone("pathway", Path(folder)))
        command = [browser, *FLAGS, f"--window-size={SIZE}", f"--screenshot={PICTURE}", f"--user-data-dir={folder}/own"]
        subprocess.run([*command, page.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    main()
