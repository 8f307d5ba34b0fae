"""`python scripts/plug_and_play.py picture=fox.png prompt='fox, twemoji style'`: drawn anew."""

from edgegen.commands.plug_and_play import main

if __name__ == "__main__":
    main()
