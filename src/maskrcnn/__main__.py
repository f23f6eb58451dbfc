"""`python -m maskrcnn` is `maskrcnn`."""

from maskrcnn.cli.main import run

if __name__ == "__main__":
    run()
