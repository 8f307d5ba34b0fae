#!/usr/bin/env python
"""One HTML page for runs, a sweep or an experiment: see configs/report.yaml."""

from edgegen.commands.report import main

if __name__ == "__main__":
    main()
