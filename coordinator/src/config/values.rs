//! How single values are written in the file: durations and sizes with units, secrets unseen.

use std::fmt;

use serde::{Deserialize, Deserializer, Serializer, de};

/// `"1m30s"`.
pub(super) mod duration {
    use super::{Deserialize as _, Deserializer, Serializer, de};
    use std::time::Duration;

    pub fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&mesh_proto::duration::format_duration(*value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        mesh_proto::duration::parse_duration(&text).map_err(de::Error::custom)
    }
}

/// `"512MiB"`, or a number of bytes.
pub(super) mod size {
    use super::{Deserialize, Deserializer, Serializer, de};

    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a size such as \"512MiB\", or a number of bytes")]
    enum Size {
        Bytes(u64),
        Text(String),
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands every field over by reference")]
    pub fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&mesh_proto::size::format_size(*value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        match Size::deserialize(from)? {
            Size::Bytes(bytes) if bytes <= mesh_proto::size::MAX_SIZE => Ok(bytes),
            Size::Bytes(bytes) => Err(de::Error::custom(format!("{bytes} bytes is too large"))),
            Size::Text(text) => mesh_proto::size::parse_size(&text).map_err(de::Error::custom),
        }
    }
}

/// A database's URL. It may hold a password, so it is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The URL itself, for connecting.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for DatabaseUrl {
    fn from(url: &str) -> Self {
        Self(url.to_owned())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatabaseUrl(hidden)")
    }
}
