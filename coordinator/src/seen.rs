//! The highest commit that this coordinator has seen, kept in its data directory. So it notices after
//! a restart, too, that the database went back in time, though no agent that knows more is there.
//!
//! It is written now and then and not synced: what it is behind by is what goes unnoticed, and a file
//! that is missing or damaged says nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_proto::{
    digest::Digest,
    ids::{Incarnation, MeshId},
};
use tracing::warn;

use crate::commit::Core;

/// How often it is written, if there is anything new.
const EVERY: Duration = Duration::from_secs(5);
/// Its name in the data directory.
const FILE: &str = "seen";

/// A history of the database, and its highest commit that was seen.
pub type Point = (Incarnation, u64);

/// The file, and what it says.
#[derive(Debug)]
pub struct Seen {
    path: PathBuf,
    /// Another mesh has another history.
    mesh: MeshId,
    kept: Mutex<Option<Point>>,
}

impl Seen {
    /// Reads what was kept.
    #[must_use]
    pub fn load(data_dir: &Path, mesh: MeshId) -> Self {
        let path = data_dir.join(FILE);
        let kept = fs::read_to_string(&path).ok().and_then(|text| parse(&text, mesh));
        Self { path, mesh, kept: Mutex::new(kept) }
    }

    #[must_use]
    pub fn point(&self) -> Option<Point> {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes it, unless it is there already.
    pub fn keep(&self, point: Point) -> io::Result<()> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if *kept != Some(point) {
            let new = self.path.with_extension("new");
            fs::write(&new, text(point, self.mesh))?;
            fs::rename(&new, &self.path)?;
            *kept = Some(point);
        }
        Ok(())
    }

    /// Keeps what the commit loop sees, until the process ends.
    pub async fn follow(self: Arc<Self>, core: Core) {
        loop {
            tokio::time::sleep(EVERY).await;
            self.note(&core).await;
        }
    }

    /// Keeps what the commit loop has seen by now. Failing is no reason not to serve.
    pub async fn note(self: &Arc<Self>, core: &Core) {
        let Some(point) = core.standing().highest() else { return };
        let this = Arc::clone(self);
        let kept = tokio::task::spawn_blocking(move || this.keep(point)).await;
        if let Ok(Err(error)) = kept {
            let path = self.path.display();
            warn!(error = &error as &dyn std::error::Error, %path, "cannot keep which commits were seen");
        }
    }
}

/// One line, with the digest of what it says: a damaged digit would halt the mesh.
fn text((incarnation, seq): Point, mesh: MeshId) -> String {
    let said = format!("{mesh} {incarnation} {seq}");
    format!("{said} {}\n", Digest::of(said.as_bytes()))
}

fn parse(line: &str, mesh: MeshId) -> Option<Point> {
    let mut words = line.split_whitespace().skip(1);
    let point = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (text(point, mesh) == line).then_some(point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_again_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let (mesh, point) = (MeshId::generate(), (Incarnation::generate(), 77));
        let seen = Seen::load(dir.path(), mesh);
        assert_eq!(seen.point(), None);
        seen.keep((point.0, 76)).unwrap();
        seen.keep(point).unwrap();
        assert_eq!(Seen::load(dir.path(), mesh).point(), Some(point));
        assert_eq!(Seen::load(dir.path(), MeshId::generate()).point(), None, "another mesh");
        let path = dir.path().join(FILE);
        let good = fs::read_to_string(&path).unwrap();
        for damaged in
            [good.replace("77", "78"), good.replace(' ', ""), good.trim().to_owned(), String::new()]
        {
            fs::write(&path, damaged).unwrap();
            assert_eq!(Seen::load(dir.path(), mesh).point(), None);
        }
    }
}
