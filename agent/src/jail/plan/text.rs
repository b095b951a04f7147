//! Plans travel to those that stand by as text: every string of a request came as text.

use std::ffi::CString;

use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _, ser::Error as _};

pub fn serialize<S: Serializer>(string: &CString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(string.to_str().map_err(S::Error::custom)?)
}

pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<CString, D::Error> {
    CString::new(String::deserialize(from)?).map_err(D::Error::custom)
}

/// The same for many.
pub mod many {
    use std::ffi::CString;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Text(#[serde(with = "super")] CString);

    #[derive(Serialize)]
    struct Borrowed<'a>(#[serde(with = "super")] &'a CString);

    pub fn serialize<S: Serializer>(strings: &[CString], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(strings.iter().map(Borrowed))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<CString>, D::Error> {
        Ok(Vec::<Text>::deserialize(from)?.into_iter().map(|text| text.0).collect())
    }
}
