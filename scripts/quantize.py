#!/usr/bin/env python
"""A checkpoint of packed integers: see configs/quantize.yaml."""

from edgegen.commands.quantize import main

if __name__ == "__main__":
    main()
