"""Train or distil a language model: python train.py --help."""

from potstill.commands import train

if __name__ == "__main__":
    train()
