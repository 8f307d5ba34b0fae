"""Pictures from the embedded model and a report of what they cost: `python scripts/demo.py`."""

from edgegen.commands.demo import main

if __name__ == "__main__":
    main()
