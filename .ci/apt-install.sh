#!/bin/sh
# Install Debian packages, without questions and without starting any service.
# Only as root; exits non-zero when it could not be done. usage: .ci/apt-install.sh PACKAGE...
set -eu

# A package that brings a service asks this program before it starts it; 101 means no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
install() {
    apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 "$@" </dev/null
}

log=$(mktemp)
# The package lists of a fresh container are empty, those of an old one point to files long gone.
if ! install "$@" >"$log" 2>&1; then
    if ! { apt-get update -qq </dev/null && install "$@"; } >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        exit 1
    fi
fi
rm -f "$log"
