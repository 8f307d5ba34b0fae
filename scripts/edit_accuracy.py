"""`python scripts/edit_accuracy.py model=PATH`: see configs/edit_accuracy.yaml."""

from edgegen.commands.edit_accuracy import main

if __name__ == "__main__":
    main()
