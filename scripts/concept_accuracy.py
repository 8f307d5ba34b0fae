"""`python scripts/concept_accuracy.py model=emoji`: does a model draw what it is asked?"""

from edgegen.commands.concept_accuracy import main

if __name__ == "__main__":
    main()
