#!/usr/bin/env python
"""Which layers mind being quantized, and bits for each: see configs/sensitivity.yaml."""

from edgegen.commands.sensitivity import main

if __name__ == "__main__":
    main()
