#!/usr/bin/env python
"""What 8-bit integers gain in time: see configs/engines.yaml."""

from edgegen.commands.engines import main

if __name__ == "__main__":
    main()
