"""`python scripts/evaluate.py model=emoji steps=8`: scores, see configs/evaluate.yaml."""

from edgegen.commands.evaluate import main

if __name__ == "__main__":
    main()
