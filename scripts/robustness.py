"""`python scripts/robustness.py model=emoji steps=8`: is there an effect of reuse to measure?"""

from edgegen.commands.robustness import main

if __name__ == "__main__":
    main()
