"""Has transactions take SQLite's write lock when they begin; to be imported.

Several servers and threads write to one database. With a plain BEGIN, of two
transactions that have read and now want to write one fails at once with "database
is locked", whatever the timeout is.
"""

from sqlalchemy import event
from sqlalchemy.engine import Engine


# oslo.db issues BEGIN itself, so it can only be exchanged on its way.
@event.listens_for(Engine, "before_cursor_execute", retval=True)
def immediate(conn, cursor, statement, parameters, context, executemany):
    if statement == "BEGIN":
        statement = "BEGIN IMMEDIATE"
    return statement, parameters
