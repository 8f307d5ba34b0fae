#!/usr/bin/env python
"""A table of finished runs: see configs/table.yaml."""

from edgegen.commands.table import main

if __name__ == "__main__":
    main()
