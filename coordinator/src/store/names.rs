//! The database's enums: by name in lower case, as everywhere, or by the number that the wire has.

use mesh_proto::state::Named;

use super::StoreError;
use crate::engine::types::{Confined, Limits, SandboxLevel};

/// The value of a stored name.
pub fn value<T: Named>(name: &str, what: &'static str) -> Result<T, StoreError> {
    T::parse(name).ok_or(StoreError::Corrupt(what))
}

/// The value of a stored name that may be absent.
pub fn optional<T: Named>(name: Option<&str>, what: &'static str) -> Result<Option<T>, StoreError> {
    name.map(|name| value(name, what)).transpose()
}

/// How an attempt is confined, once its agent has said so.
pub fn confined(level: Option<i16>, limits: Option<i16>) -> Option<Confined> {
    let level = SandboxLevel::try_from(i32::from(level?)).ok()?;
    let limits = limits.and_then(|limits| Limits::try_from(i32::from(limits)).ok()).unwrap_or_default();
    Some(Confined { level, limits })
}
