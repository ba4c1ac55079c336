#!/bin/sh
# Makes the secrets that docker-compose.yml mounts, in etc/compose/secrets, and
# a first project, demo. It does nothing if they are there: to make new ones,
# remove that directory.
set -eu
umask 077
cd "$(dirname "$0")"
if [ -e secrets ]; then
    echo "etc/compose/secrets is there already, and left as it is." >&2
    exit 0
fi

random() { head -c 32 /dev/urandom | od -A n -v -t x1 | tr -d ' \n'; }

operator=$(random) s3=$(random) token=$(random)
digest=$(printf %s "$token" | sha256sum | cut -c 1-64)

new=$(mktemp -d secrets.XXXXXX)
trap 'rm -rf "$new"' EXIT

printf '%s\n' "$operator" >"$new/operator-token"
printf '%s\n' "$s3" >"$new/s3-secret"
cat >"$new/tokens.yaml" <<EOF
# One entry for each token, by its SHA-256: printf %s TOKEN | sha256sum
# The API reads this file when it starts.
tokens:
  - sha256: $digest
    user: demo
    project: demo # without "-": it ends the project in names of buckets
    domain: default
    roles: [member]
EOF
# Compose mounts files with the owner and mode that they have here, and the
# programs run as a user that this machine does not know. What keeps others on
# this machine out is the mode of the directory, which is not mounted.
chmod 0444 "$new/operator-token" "$new/s3-secret" "$new/tokens.yaml"

# These are read by Compose, curl and shells, as the user who runs them.
cat >"$new/s3.env" <<EOF
ROOT_ACCESS_KEY_ID=vmimport
ROOT_SECRET_ACCESS_KEY=$s3
EOF
cat >"$new/s3.curl" <<EOF
aws-sigv4 = "aws:amz:us-east-1:s3"
user = "vmimport:$s3"
header = "x-amz-content-sha256: UNSIGNED-PAYLOAD"
EOF
cat >"$new/client.env" <<EOF
VMIMPORT_ENDPOINT=http://127.0.0.1:8080
VMIMPORT_TOKEN=$token
VMIMPORT_PROJECT_ID=demo
VMIMPORT_REGION=local-1
EOF

mv "$new" secrets
trap - EXIT
echo "etc/compose/secrets made." >&2
