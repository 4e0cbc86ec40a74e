"""`python -m ps_cli` is `ps-postgres`."""

import sys

from ps_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
