#!/bin/sh
# Starts mitmdump as the egress proxy of a bottle. Arguments go to mitmdump. Environment, with defaults:
#   EGRESS_ROUTES  the routes.yaml (/etc/egress/routes.yaml)
#   EGRESS_BIND    127.0.0.1         EGRESS_PORT  9099
#   EGRESS_CONFDIR where mitmproxy keeps its CA (~/.mitmproxy)
#   EGRESS_PORTS   80,443            EGRESS_ALLOW_PRIVATE  host,host
#   MITMDUMP       mitmdump
set -eu
here=$(cd "$(dirname "$0")" && pwd)

# A SIGHUP that comes before the addon handles it would kill mitmdump. An ignored signal stays ignored through exec.
trap '' HUP

# lazy, upstream_cert: else mitmproxy connects to the host of a CONNECT, allowed or not, before there is a request.
# rawtcp: else whatever is not HTTP goes through uninspected. http2: hosts are judged by CONNECT, SNI and Host header.
exec "${MITMDUMP:-mitmdump}" --quiet \
	--mode regular \
	--listen-host "${EGRESS_BIND:-127.0.0.1}" \
	--listen-port "${EGRESS_PORT:-9099}" \
	--set confdir="${EGRESS_CONFDIR:-$HOME/.mitmproxy}" \
	--set connection_strategy=lazy \
	--set upstream_cert=false \
	--set rawtcp=false \
	--set http2=false \
	--scripts "$here/egress_addon.py" \
	--set routes="${EGRESS_ROUTES:-/etc/egress/routes.yaml}" \
	--set ports="${EGRESS_PORTS:-80,443}" \
	--set allow_private="${EGRESS_ALLOW_PRIVATE:-}" \
	"$@"
