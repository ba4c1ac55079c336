"""Glance, with transactions that take SQLite's write lock when they begin.

An import and the API write at the same time. With a plain BEGIN, of two
transactions that have read and now want to write one fails at once with "database
is locked", whatever the timeout is, and the import is never heard of again.
"""

from glance.common.wsgi_app import init_app
from sqlalchemy import event
from sqlalchemy.engine import Engine


# oslo.db issues BEGIN itself, so it can only be exchanged on its way.
@event.listens_for(Engine, "before_cursor_execute", retval=True)
def immediate(conn, cursor, statement, parameters, context, executemany):
    if statement == "BEGIN":
        statement = "BEGIN IMMEDIATE"
    return statement, parameters


application = init_app()
