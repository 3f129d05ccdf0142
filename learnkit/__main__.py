"""`python -m learnkit` is the command `learnkit`."""

import sys

from learnkit.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
