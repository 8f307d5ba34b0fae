#!/usr/bin/env python
"""The cells, the table and the plot of an experiment: see configs/experiment.yaml."""

from edgegen.commands.experiment import main

if __name__ == "__main__":
    main()
