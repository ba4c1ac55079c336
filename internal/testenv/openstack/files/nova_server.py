"""Runs one of Nova's servers, for which there is no script without the packages of
the services: NAME OPTION..."""

import importlib
import os
import sys

import nova.cmd  # noqa: F401 - exchanges parts of Python's library, and must be first
import nova.virt
import sqlite_immediate  # noqa: F401

# Nova looks for virtualization drivers nowhere else.
nova.virt.__path__.append(os.path.dirname(__file__))
# Nova tells from its own name who it is.
sys.argv[:2] = ["nova-" + sys.argv[1]]
sys.exit(importlib.import_module(sys.argv[0].replace("nova-", "nova.cmd.")).main())
