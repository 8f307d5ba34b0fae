#!/usr/bin/env python
"""A grid, or a search over several objectives: see configs/sweep.yaml."""

from edgegen.commands.sweep import main

if __name__ == "__main__":
    main()
