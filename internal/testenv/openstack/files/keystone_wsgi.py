"""Keystone, working on one request at a time.

With SQLite, of two transactions that have read and now want to write one fails.
Threads are still of use: a connection on which nothing comes occupies one.
"""

import threading

from keystone.server.wsgi import initialize_public_application

keystone = initialize_public_application()
lock = threading.Lock()


def application(environ, start_response):
    with lock:
        return keystone(environ, start_response)
