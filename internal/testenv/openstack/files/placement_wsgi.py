"""Placement, to which Nova's servers write all at once."""

import sqlite_immediate  # noqa: F401
from placement.wsgi import init_application

application = init_application()
