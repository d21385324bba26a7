"""`python -m deepcluster`, which launchers of several processes ask for: the command line."""

import sys

from deepcluster.cli.main import main

sys.exit(main())
