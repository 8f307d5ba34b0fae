"""`python scripts/train.py experiment=emoji/vae`: see configs/train.yaml and experiment/."""

from edgegen.commands.train import main

if __name__ == "__main__":
    main()
