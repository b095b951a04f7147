//! The operating system's user that owns the cluster and runs Postgres.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::unistd::{Gid, Uid, User};

use super::error::PostgresError;

/// Who runs Postgres, and who connects to it.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub uid: Uid,
    pub gid: Gid,
    pub name: String,
    /// The coordinator's own user, which is another one when it runs as root.
    pub caller: String,
}

/// Users that a root coordinator gives a new cluster to; a package makes the first one.
const CANDIDATES: [&str; 2] = ["mesh-postgres", "postgres"];

impl Owner {
    /// The owner of the cluster in `dir`, or who is to own it when it is not there yet.
    pub fn find(dir: &Path) -> Result<Self, PostgresError> {
        let me = Uid::effective();
        let caller = by_uid(me)?;
        let owner = match std::fs::metadata(dir).map(|meta| meta.uid()) {
            Ok(uid) if me.is_root() && uid != 0 => by_uid(Uid::from_raw(uid))?,
            Ok(uid) if !me.is_root() && uid != me.as_raw() => {
                return Err(PostgresError::Foreign { dir: dir.to_owned(), owner: uid, uid: me.as_raw() });
            }
            Ok(_) | Err(_) if me.is_root() => CANDIDATES
                .iter()
                .find_map(|name| User::from_name(name).ok().flatten().filter(|user| !user.uid.is_root()))
                .ok_or(PostgresError::NoUser)?,
            Ok(_) | Err(_) => caller.clone(),
        };
        Ok(Self { uid: owner.uid, gid: owner.gid, name: owner.name, caller: caller.name })
    }

    /// Whether Postgres runs as another user than the coordinator.
    pub fn is_other(&self) -> bool {
        self.name != self.caller
    }
}

fn by_uid(uid: Uid) -> Result<User, PostgresError> {
    User::from_uid(uid).ok().flatten().ok_or(PostgresError::NoPasswdEntry(uid.as_raw()))
}
