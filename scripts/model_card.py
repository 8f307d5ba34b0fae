"""The sheets of a model card: `python scripts/model_card.py model=emoji`."""

from edgegen.commands.model_card import main

if __name__ == "__main__":
    main()
