"""The command line with units of few pairs, so that small collections have many: for tries of clusters."""

from __future__ import annotations

from mechir import cli, work

SIZE = 64

if __name__ == "__main__":
    work.UNIT = SIZE
    cli.main()
