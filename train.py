"""Train or distil a language model: python train.py --help."""

from potstill.cli.main import train

if __name__ == "__main__":
    train()
