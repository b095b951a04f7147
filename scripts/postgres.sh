# shellcheck shell=bash
# Sourced by other scripts: where the Postgres server binaries are, and whom to run them as.

# Prints the directory of the newest installed server binaries (14 or newer), or fails.
postgres_bin_dir() {
    local dir major best=0 best_dir=
    local IFS=:
    for dir in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin $PATH; do
        [[ -x $dir/postgres && -x $dir/initdb && -x $dir/pg_ctl ]] || continue
        major=$("$dir/postgres" --version | sed -n 's/^postgres (PostgreSQL) \([0-9]*\).*/\1/p')
        if [[ -n $major ]] && ((major >= 14 && major > best)); then
            best=$major best_dir=$dir
        fi
    done
    [[ -n $best_dir ]] && printf '%s\n' "$best_dir"
}

# Runs a program as somebody whom Postgres accepts: itself, or its own user instead of root.
as_postgres() {
    if ((EUID == 0)); then
        setpriv --reuid=postgres --regid=postgres --init-groups -- "$@"
    else
        "$@"
    fi
}

# Ends the Postgres that tests share, when it runs. It would end by itself, some time later.
stop_test_postgres() {
    local root=$1/test-postgres pid
    pid=$(head -n 1 "$root/postgres/postmaster.pid" 2>/dev/null) || return 0
    # Somebody else's test run may still need it.
    exec 8>>"$root/users.lock"
    if flock --nonblock --exclusive 8 && grep -qs '^post' "/proc/$pid/comm"; then
        kill -INT "$pid" 2>/dev/null || true
        while [[ -e $root/postgres/postmaster.pid ]]; do sleep 0.1; done
    fi
    exec 8>&-
}
