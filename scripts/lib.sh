# shellcheck shell=bash
# What the scripts share; sourced, with the repository as working directory afterwards.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Those of a make around us: cargo would take them for its own.
unset MAKEFLAGS MFLAGS MAKELEVEL

# runuser and useradd, also where root's PATH came from an ordinary user.
PATH=$PATH:/usr/sbin:/sbin

extension=pg_background_queue

say() { printf '\n== %s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

is_root() { [ "$(id -u)" = 0 ]; }

as_root() { if is_root; then "$@"; else sudo "$@"; fi; }

# PostgreSQL refuses to run as root: then this user runs it. (The integration tests read the variable, too.)
export PGBQ_TEST_USER=${PGBQ_TEST_USER:-postgres}

as_server_user() { if is_root; then runuser -u "$PGBQ_TEST_USER" -- "$@"; else "$@"; fi; }

# can_build PG_CONFIG: does it belong to a PostgreSQL that has a server and its headers?
# (Debian's libpq-dev alone brings a pg_config, too.)
can_build() {
    local headers programs
    headers=$("$1" --includedir-server 2>/dev/null) && programs=$("$1" --bindir 2>/dev/null) || return 1
    [ -e "$headers/postgres.h" ] && [ -x "$programs/initdb" ]
}

# Sets and exports PG_CONFIG: the one that was given, the one in the PATH, or Debian's.
find_pg_config() {
    if [ -n "${PG_CONFIG:-}" ]; then
        can_build "$PG_CONFIG" || die "PG_CONFIG=$PG_CONFIG belongs to no PostgreSQL with a server and its headers"
        PG_CONFIG=$(command -v "$PG_CONFIG")
    else
        local candidate
        for candidate in "$(command -v pg_config || true)" /usr/lib/postgresql/*/bin/pg_config; do
            if can_build "$candidate"; then PG_CONFIG=$candidate; fi
            [ -z "${PG_CONFIG:-}" ] || break
        done
        [ -n "${PG_CONFIG:-}" ] || return 1
    fi
    export PG_CONFIG
}

need_pg_config() {
    find_pg_config || die "no PostgreSQL with a server and its headers found: set PG_CONFIG, or install" \
        "postgresql-15 and postgresql-server-dev-15"
}

# Where builds for that PostgreSQL go: one directory each, so that changing PG_CONFIG mixes nothing up. With
# PGBQ_BUILD_DIR, to which the same goes for all: whoever builds for one after the other compiles what does
# not depend on PostgreSQL only once.
build_dir() {
    local version id
    if [ -n "${PGBQ_BUILD_DIR:-}" ]; then
        echo "$PGBQ_BUILD_DIR"
        return
    fi
    version=$("$PG_CONFIG" --version)
    id=$(printf '%s %s' "$PG_CONFIG" "$version" | cksum)
    version=${version#PostgreSQL }
    echo "$PWD/target/pg${version%% *}-${id%% *}"
}

library_suffix() { if [ "$(uname)" = Darwin ]; then echo dylib; else echo so; fi; }

# The built library's path.
release_library() { echo "$(build_dir)/release/lib$extension.$(library_suffix)"; }

# The program that runs isolation tests; not every PostgreSQL comes with it.
isolation_program() { echo "$(dirname "$("$PG_CONFIG" --pgxs)")/../test/isolation/pg_isolation_regress"; }

need_cargo() {
    command -v cargo > /dev/null || die "cargo is not in the PATH: install Rust (https://rustup.rs)"
}
