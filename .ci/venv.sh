#!/bin/sh
# Make .venv hold this project with the given extras. usage: .ci/venv.sh EXTRA[,EXTRA...]
set -eu
cd "$(dirname "$0")/.."
extras=$1

modern() { # Is it a Python that can run us?
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

may_install() { # Are Debian's packages ours to install?
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3 python3.13 python3.12 python3.11
    fi
    for python; do
        if modern "$python"; then
            return
        fi
    done
    python=
}

give_up() {
    echo "jmcache: $1" >&2
    exit 1
}

if ! modern .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    find_python
    if [ -z "$python" ] && [ -n "${PYTHON:-}" ]; then
        give_up "PYTHON=$PYTHON is not a Python 3.11 or newer that starts."
    fi
    if [ -z "$python" ] && may_install; then
        echo "==> installing Debian's python3 and python3-venv"
        .ci/apt-install.sh python3 python3-venv || true
        find_python
    fi
    if [ -z "$python" ]; then
        give_up "Python 3.11 or newer is needed. On Debian 12 or Ubuntu 24.04:
  sudo apt-get install python3 python3-venv
Elsewhere install it and name it: make PYTHON=/path/to/python3.12 ..."
    fi
    # Debian keeps what makes virtual environments in a package of its own.
    if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        if may_install; then
            echo "==> installing Debian's $package"
            .ci/apt-install.sh "$package" || true
        fi
        "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
            give_up "$python cannot make virtual environments. Run:
  sudo apt-get install $package"
    fi
    echo "==> making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi

echo "==> installing jmcache[$extras] into .venv"
# Modern builds only: an older pip would run setup.py itself.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517 \
    --editable ".[$extras]"
touch ".venv/.stamp-$extras"
