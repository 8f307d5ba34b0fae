#!/usr/bin/env python
"""What a frame takes in several video editors, part by part: see configs/edit_times.yaml."""

from edgegen.commands.edit_times import main

if __name__ == "__main__":
    main()
