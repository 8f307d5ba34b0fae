#!/usr/bin/env python
"""What a model costs, from its architecture alone: see configs/flops.yaml."""

from edgegen.commands.flops import main

if __name__ == "__main__":
    main()
