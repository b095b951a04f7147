//! The cluster's configuration files, written anew before each start.

use std::fmt::Write as _;

use super::owner::Owner;

/// The superuser of the cluster, used to make the role and the database below.
pub(super) const SUPERUSER: &str = "postgres";
/// The role that the coordinator works as; it owns its database and is no superuser.
pub(super) const ROLE: &str = "mesh";
/// The database.
pub(super) const DATABASE: &str = "mesh";
/// Names the socket file; nothing listens on TCP.
pub(super) const PORT: u16 = 5432;

/// How much a crash of the machine may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// Nothing that was committed.
    Full,
    /// Everything: for tests alone.
    #[cfg(any(test, feature = "testing"))]
    None,
}

/// `postgresql.conf`. The operator's own settings go to `postgresql.auto.conf`
/// (`ALTER SYSTEM`), which Postgres reads afterwards and this never touches.
pub(super) fn postgresql_conf(durability: Durability) -> String {
    let (durable, connections) = match durability {
        Durability::Full => ("on", 50),
        #[cfg(any(test, feature = "testing"))]
        Durability::None => ("off", 300),
    };
    format!(
        "# Written by the mesh coordinator before each start: changes here are lost.
# Set what you want otherwise with ALTER SYSTEM, or run your own Postgres (--database-url).
cluster_name = 'mesh'

# The socket lies in this directory, which only its owner and root can enter.
listen_addresses = ''
port = {PORT}
unix_socket_directories = '.'
unix_socket_permissions = 0700
max_connections = {connections}

# What the coordinator acknowledged must survive a power cut.
fsync = {durable}
synchronous_commit = {durable}
full_page_writes = {durable}

# Small group commits and short indexed reads: plans are cheap, results are small.
shared_buffers = 64MB
jit = off
max_parallel_workers_per_gather = 0
min_wal_size = 80MB
max_wal_size = 1GB
checkpoint_timeout = 15min
checkpoint_completion_target = 0.9

timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'

# One file for each day of the week, each emptied when its day comes again. Neither statements
# nor values are logged: they hold what people submitted.
logging_collector = on
log_destination = 'stderr'
log_directory = 'log'
log_filename = 'postgres-%a.log'
log_rotation_age = 1d
log_rotation_size = 0
log_truncate_on_rotation = on
log_line_prefix = '%m [%p] '
log_min_messages = warning
log_checkpoints = off
log_error_verbosity = terse
log_min_error_statement = panic
log_parameter_max_length_on_error = 0
"
    )
}

/// `pg_hba.conf`: the socket alone, and only the users of the map below.
pub(super) const PG_HBA: &str = "# Written by the mesh coordinator before each start: changes here are lost.
local all all peer map=mesh
";

/// `pg_ident.conf`: which users of the operating system may be which role.
pub(super) fn pg_ident(owner: &Owner) -> String {
    let mut users = vec![&owner.caller];
    if owner.is_other() {
        users.push(&owner.name);
    }
    let mut text = "# Written by the mesh coordinator before each start: changes here are lost.\n".to_owned();
    for user in users {
        for role in [SUPERUSER, ROLE] {
            // Quoted, a name is taken as it is; a quote in it is doubled.
            let _ = writeln!(text, "mesh \"{}\" {role}", user.replace('"', "\"\""));
        }
    }
    text
}
