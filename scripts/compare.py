"""`python scripts/compare.py model=… prompts=… 'methods=[…]'`: what methods save and cost."""

from edgegen.commands.compare import main

if __name__ == "__main__":
    main()
