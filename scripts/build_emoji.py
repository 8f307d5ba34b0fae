"""`python scripts/build_emoji.py packages=DIR fetch=true`: see configs/build_emoji.yaml."""

from edgegen.commands.build_emoji import main

if __name__ == "__main__":
    main()
