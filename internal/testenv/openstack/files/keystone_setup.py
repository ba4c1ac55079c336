"""Makes Keystone's database, with an administrator in it.

It does what keystone-manage's db_sync and bootstrap do, in one process and without
the commands that it does not need: those for SAML alone take over a second to load.
"""

import argparse
import sqlite3

import keystone.conf
from keystone.cmd.bootstrap import Bootstrapper
from keystone.common import sql
from keystone.common.sql import upgrades

parser = argparse.ArgumentParser()
for option in "config", "database", "password", "region", "url":
    parser.add_argument("--" + option, required=True)
args = parser.parse_args()

keystone.conf.configure()
sql.initialize()
keystone.conf.CONF(["--config-file", args.config], project="keystone")

# With a write-ahead log, nobody who writes waits for transactions that only read,
# such as Keystone leaves behind.
sqlite3.connect(args.database).execute("PRAGMA journal_mode = WAL")
upgrades.offline_sync_database_to_version()
bootstrapper = Bootstrapper()
bootstrapper.admin_username = bootstrapper.project_name = bootstrapper.admin_role_name = "admin"
bootstrapper.admin_password = args.password
bootstrapper.immutable_roles = True
bootstrapper.service_name = "keystone"
bootstrapper.region_id = args.region
bootstrapper.public_url = bootstrapper.internal_url = bootstrapper.admin_url = args.url
bootstrapper.bootstrap()
