"""Runs a Swift server from files outside /etc/swift: DIRECTORY KIND."""

import sys

from swift.common import utils

directory, kind = sys.argv[1:]
utils.set_swift_dir(directory)  # before anything else of Swift reads swift.conf

from swift.common.wsgi import run_wsgi  # noqa: E402

# verbose: log to stderr, for there is no syslog.
sys.exit(run_wsgi(f"{directory}/{kind}-server.conf", f"{kind}-server", verbose=True))
