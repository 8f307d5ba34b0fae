"""`python scripts/generate.py prompts="a fox, noto style" steps=8`: pictures and their cost."""

from edgegen.commands.generate import main

if __name__ == "__main__":
    main()
