"""`python scripts/build_animated.py package=FILE`: see configs/build_animated.yaml."""

from edgegen.commands.build_animated import main

if __name__ == "__main__":
    main()
