"""`python scripts/build_edits.py output=outputs/edits`: see configs/build_edits.yaml."""

from edgegen.commands.build_edits import main

if __name__ == "__main__":
    main()
