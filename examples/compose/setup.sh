#!/bin/sh
# Makes what compose.yaml mounts, and .env with the sidecar's token. Again is no harm: what is there stays.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p mailbox/web ca/private
(umask 022 && mkdir -p ca/public) # the bottle's user reads the certificate
if [ ! -e .env ]; then
	token=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
	cat > .env <<-END
		SUPERVISE_UID=$(id -u)
		SUPERVISE_GID=$(id -g)
		SUPERVISE_TOKEN=$token
	END
fi
echo "ready: docker compose up -d --build"
