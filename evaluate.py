"""Judge one model or several: python evaluate.py --help."""

from potstill.cli.main import evaluate

if __name__ == "__main__":
    evaluate()
