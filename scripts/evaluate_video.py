#!/usr/bin/env python
"""How well and how steadily a video editor edits: see configs/evaluate_video.yaml."""

from edgegen.commands.evaluate_video import main

if __name__ == "__main__":
    main()
