//! The database's enums by name: lower case, as everywhere.

use mesh_proto::state::Named;

use super::StoreError;

/// The value of a stored name.
pub fn value<T: Named>(name: &str, what: &'static str) -> Result<T, StoreError> {
    T::parse(name).ok_or(StoreError::Corrupt(what))
}

/// The value of a stored name that may be absent.
pub fn optional<T: Named>(name: Option<&str>, what: &'static str) -> Result<Option<T>, StoreError> {
    name.map(|name| value(name, what)).transpose()
}
