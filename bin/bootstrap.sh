# Sets up .venv in the checkout. Sourced by bin/cassata, bin/test and .ci/run, which set CHECKOUT first; POSIX sh.
#
# .venv/cassata-NAME.stamp says for what an install was complete: it is written last. While somebody installs, the folder
# .venv.lock holds his pid; a lock without its process was interrupted, and the whole .venv is begun anew.

say() { printf 'cassata: %s\n' "$*" >&2; }

fail() {
    say "$*"
    exit 1
}

# Run a command, and show what it wrote only if it fails.
quietly() {
    written=$("$@" 2>&1) || {
        printf '%s\n' "$written" >&2
        return 1
    }
}

# set_up NAME: make sure that .venv holds the project with its extra NAME ("run": none). Quick when there is nothing to do.
set_up() {
    is_set_up "$1" && return
    take_lock
    is_set_up "$1" || install_project "$1"
    release_lock
}

is_set_up() {
    [ -r "$CHECKOUT/.venv/cassata-$1.stamp" ] || return 1
    read -r stamp < "$CHECKOUT/.venv/cassata-$1.stamp"
    [ "$stamp" = "$(stamp_now)" ]
}

# What an install depends on: pyproject.toml, where the checkout lies (the install points to it), and the Python, told by the
# name and size of the program behind all links, since asking it for its version would take longer than all the rest.
stamp_now() {
    program="$CHECKOUT/.venv/bin/python"
    while [ -h "$program" ]; do
        link=$(readlink "$program")
        case $link in
            /*) program=$link ;;
            *) program=${program%/*}/$link ;;
        esac
    done
    sum=$(cksum < "$CHECKOUT/pyproject.toml")
    # shellcheck disable=SC2012
    size=$(LC_ALL=C ls -Ln "$program" 2> /dev/null | { read -r _ _ _ _ size _ && printf '%s' "$size"; }) || size=none
    printf '%s %s:%s %s\n' "$sum" "$program" "$size" "$CHECKOUT"
}

# --- the lock

LOCKED=
MADE=

take_lock() {
    lock="$CHECKOUT/.venv.lock"
    trap 'abandon' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    waited=0
    until mkdir "$lock" 2> /dev/null; do
        [ -d "$lock" ] || [ -w "$CHECKOUT" ] || fail "$CHECKOUT is not writable, so .venv cannot be made in it"
        take_over_stale_lock && continue
        [ "$waited" -eq 0 ] && say "waiting for process ${owner:-?}, which is setting up .venv"
        [ "$waited" -lt 900 ] || fail "waited 15 minutes: if nothing is setting up .venv any more, remove $lock"
        waited=$((waited + 1))
        sleep 1
    done
    LOCKED=yes
    echo $$ > "$lock/pid"
    [ -z "${INTERRUPTED:-}" ] || rm -rf "$CHECKOUT/.venv"
}

take_over_stale_lock() {
    owner=$(cat "$lock/pid" 2> /dev/null) || owner=
    if [ -z "$owner" ]; then
        sleep 1 # between making the folder and writing the pid there is an instant
        owner=$(cat "$lock/pid" 2> /dev/null) || owner=
    fi
    [ -n "$owner" ] && is_alive "$owner" && return 1
    [ -d "$lock" ] || return 0
    mv "$lock" "$lock.$$" 2> /dev/null || return 1
    if [ "$(cat "$lock.$$/pid" 2> /dev/null)" != "$owner" ]; then
        mv "$lock.$$" "$lock" 2> /dev/null # somebody else has just taken it over
        return 1
    fi
    rm -rf "$lock.$$"
    say "the last set-up was interrupted: beginning anew"
    INTERRUPTED=yes
}

is_alive() { [ -d "/proc/$1" ] || kill -0 "$1" 2> /dev/null; }

release_lock() {
    rm -rf "$CHECKOUT/.venv.lock"
    LOCKED=
}

# Whatever ends this before it was complete: leave no half-made .venv behind.
abandon() {
    [ -n "$LOCKED" ] || return 0
    [ -z "$MADE" ] || rm -rf "$CHECKOUT/.venv"
    release_lock
}

# --- the install

install_project() {
    project=$CHECKOUT
    [ "$1" = run ] || project="${CHECKOUT}[$1]"
    has_usable_venv || make_venv
    rm -f "$CHECKOUT/.venv/cassata-$1.stamp"
    say "installing Cassata and what it needs into .venv"
    install_into_venv "$project" || fail "it could not be installed (see above); the next try begins anew"
    stamp_now > "$CHECKOUT/.venv/cassata-$1.stamp"
    [ "$1" = run ] || stamp_now > "$CHECKOUT/.venv/cassata-run.stamp"
    say "done"
}

has_uv() { command -v uv > /dev/null 2>&1; }

has_usable_venv() {
    [ -x "$CHECKOUT/.venv/bin/python" ] && is_new_enough "$CHECKOUT/.venv/bin/python" || return 1
    has_uv || "$CHECKOUT/.venv/bin/python" -c 'import pip' 2> /dev/null
}

install_into_venv() {
    if has_uv; then
        quietly uv pip install --quiet --python "$CHECKOUT/.venv/bin/python" --editable "$1"
    else
        quietly "$CHECKOUT/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$1"
    fi
}

make_venv() {
    MADE=yes
    rm -rf "$CHECKOUT/.venv"
    if find_python; then
        say "making .venv with $python"
    elif has_uv; then
        say "making .venv with uv, which fetches a Python"
        python='>=3.11'
    else
        fail "Cassata needs Python 3.11 or newer, and none was found${PYTHON:+ at PYTHON=$PYTHON}: install one," \
            "for example with 'apt-get install python3 python3-venv', or set PYTHON to its path"
    fi
    if has_uv; then
        quietly uv venv --quiet --python "$python" "$CHECKOUT/.venv" || fail "uv could not make .venv (see above)"
    else
        make_venv_with_python
    fi
}

make_venv_with_python() {
    "$python" -c 'import ensurepip, venv' 2> /dev/null || get_venv_module
    quietly "$python" -m venv "$CHECKOUT/.venv" || fail "$python could not make .venv (see above)"
}

# Debian and its kin keep the venv module in a package of its own.
get_venv_module() {
    if may_use_apt; then
        say "installing python3-venv with apt-get, since this Python has no venv module"
        apt_get_install python3-venv || fail "python3-venv could not be installed (see above)"
    elif command -v apt-get > /dev/null 2>&1; then
        fail "this Python has no venv module. Type: sudo apt-get install -y --no-install-recommends python3-venv"
    else
        fail "$python has no venv module: install it with your system's package manager, or install uv"
    fi
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        python=$PYTHON
        is_new_enough "$python"
        return
    fi
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        python=$(command -v "$python") && is_new_enough "$python" && return
    done
    return 1
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; }

may_use_apt() { [ "${CASSATA_NO_APT:-}" != 1 ] && [ "$(id -u)" -eq 0 ] && command -v apt-get > /dev/null 2>&1; }

apt_get_install() {
    quietly apt-get update && quietly env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}
