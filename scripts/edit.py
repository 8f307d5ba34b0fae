"""`python scripts/edit.py video=in.mp4 instruction="make it winter"`: an edited video."""

from edgegen.commands.edit import main

if __name__ == "__main__":
    main()
