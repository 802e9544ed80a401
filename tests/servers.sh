#!/bin/sh
# Installs redis-server, rabbitmq-server, postgresql and the browser chromium from the distribution, if they are missing
# and this may.  The tests start private ones; none needs to run.
missing=""
command -v redis-server >/dev/null || missing="$missing redis-server"
{ [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] && command -v epmd >/dev/null; } || missing="$missing rabbitmq-server"
{ ls /usr/lib/postgresql/*/bin/initdb || [ -x /usr/local/bin/initdb ]; } >/dev/null 2>&1 || missing="$missing postgresql"
command -v chromium >/dev/null || missing="$missing chromium"
[ -z "$missing" ] && exit 0

as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo -n"
if command -v apt-get >/dev/null && { [ -z "$as_root" ] || $as_root true 2>/dev/null; }; then
    echo "Installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    $as_root apt-get -o DPkg::Lock::Timeout=400 -qq update &&
        $as_root apt-get -o DPkg::Lock::Timeout=400 -qq -y --no-install-recommends install $missing >/dev/null
fi || echo "Could not install$missing"

# What is still missing is named by the tests that need it: they are skipped, and fail where CI=true.
exit 0
