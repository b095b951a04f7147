//! The directories that an operator lends to jobs (`--allow-mount`), tried before they are offered: a
//! task that comes because of one must find it.
//!
//! May enter: whether a mount can be had. What a task makes of it is the jail's business.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::AllowedMount;
use crate::jail::{self, ClientError};

/// How long a file system may take to say that a directory is there.
const PATIENCE: Duration = Duration::from_secs(10);

/// What became of a mount: usable, under the path it really has, or why not.
pub type Tried = Result<AllowedMount, String>;

/// Tries each mount; none may show what is in `own`, the agent's directories. `trial` asks the jail.
pub async fn tried<F>(
    mounts: &BTreeMap<String, AllowedMount>,
    own: &[&Path],
    trial: impl Fn(jail::Mount) -> F,
) -> Result<BTreeMap<String, Tried>, ClientError>
where
    F: Future<Output = Result<(), ClientError>>,
{
    let own: Vec<PathBuf> =
        own.iter().map(|dir| dir.canonicalize().unwrap_or_else(|_| (*dir).to_owned())).collect();
    let mut tried = BTreeMap::new();
    for (name, mount) in mounts {
        let result = match real_path(mount.path.clone()).await {
            Err(why) => Err(why),
            Ok(path) if own.iter().any(|own| own.starts_with(&path) || path.starts_with(own)) => {
                Err("it holds the agent's own files, which no task may see".to_owned())
            }
            Ok(path) => {
                let asked = trial(jail::Mount {
                    source: path.clone(),
                    to: PathBuf::from("/mnt"),
                    read_only: mount.read_only,
                    owner: mount.owner,
                });
                match asked.await {
                    Ok(()) => Ok(AllowedMount { path, ..mount.clone() }),
                    Err(ClientError::Refused(why)) => Err(why),
                    Err(error) => return Err(error),
                }
            }
        };
        let what = |why| format!("{} cannot be mounted: {why}", mount.path.display());
        tried.insert(name.clone(), result.map_err(what));
    }
    Ok(tried)
}

/// Where a path leads in the end; a file system that hangs is given up.
async fn real_path(path: PathBuf) -> Result<PathBuf, String> {
    let look = tokio::task::spawn_blocking(move || {
        let path = path.canonicalize()?;
        path.metadata()?;
        Ok(path)
    });
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(Ok(found)) => found.map_err(|error: std::io::Error| error.to_string()),
        Ok(Err(_)) => Err("looking at it failed".to_owned()),
        Err(_) => Err(format!("it does not answer within {} s", PATIENCE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_holds_the_agents_files_is_not_offered() {
        let machine = tempfile::tempdir().unwrap();
        let data_dir = machine.path().join("srv/mesh");
        for dir in ["srv/mesh/attempts", "srv/mesh-data", "srv/data"] {
            std::fs::create_dir_all(machine.path().join(dir)).unwrap();
        }
        std::os::unix::fs::symlink("mesh", machine.path().join("srv/link")).unwrap();
        let allow =
            |path: &str| AllowedMount { path: machine.path().join(path), read_only: true, owner: None };
        let names = ["", "srv", "srv/mesh", "srv/mesh/attempts", "srv/link", "srv/mesh-data", "srv/data"];
        let mounts = names.map(|name| (name.to_owned(), allow(name))).into();
        let tried = tried(&mounts, &[&data_dir], async |_| Ok(())).await.unwrap();
        let offered: Vec<&str> =
            tried.iter().filter(|(_, tried)| tried.is_ok()).map(|(name, _)| name.as_str()).collect();
        assert_eq!(offered, ["srv/data", "srv/mesh-data"]);
        let why = tried["srv"].as_ref().unwrap_err();
        assert!(why.contains("srv cannot be mounted: it holds the agent's own files"), "{why}");
    }
}
