"""Glance, which in SQLite would never be heard of again about an import that wrote
when the API did."""

import sqlite_immediate  # noqa: F401
from glance.common.wsgi_app import init_app

application = init_app()
