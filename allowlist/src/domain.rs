//! Domain names in their one canonical form.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::target::{MAX_TARGET_BYTES, TargetError, shorten};

/// Longest domain name in its ASCII form, without the trailing dot (RFC 1035 section 2.3.4).
pub const MAX_NAME_BYTES: usize = 253;
/// Longest label of a domain name (RFC 1035 section 2.3.4).
pub const MAX_LABEL_BYTES: usize = 63;

/// A domain name in canonical form: IDNA ASCII, lower case, no trailing dot, at least two labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "String")]
pub struct DomainName(Box<str>);

impl DomainName {
    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Takes a name that is in canonical form already, as it stands on disk and on the wire. The tables of IDNA,
    /// which differ between Unicode versions, are not asked again: what one release stored every release can read.
    pub(crate) fn from_canonical(name: &str) -> Result<Self, &'static str> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err("a domain name has 1 to 253 characters");
        }
        let mut labels = 0;
        for label in name.split('.') {
            labels += 1;
            if label.is_empty() || label.len() > MAX_LABEL_BYTES {
                return Err("a label of a domain name has 1 to 63 characters");
            }
            let legal =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
            if !label.bytes().all(legal) || label.starts_with('-') || label.ends_with('-') {
                return Err("labels hold letters, digits, `-` and `_`, with no `-` at either end");
            }
        }
        if ends_in_number(name) {
            return Err(
                "its last label is a number, so it reads as a v4 address; write four decimal numbers from 0 \
                        to 255 without leading zeros",
            );
        }
        if labels < 2 {
            return Err("a domain name needs at least two labels, as in example.com");
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DomainName {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let malformed = |reason| TargetError::Malformed { input: shorten(text), reason };
        // IDNA is superlinear in a label's length.
        if text.len() > MAX_TARGET_BYTES {
            return Err(malformed("a domain name has 1 to 253 characters"));
        }
        let ascii =
            idna::domain_to_ascii(text.trim()).map_err(|_| malformed("it is not a valid domain name"))?;
        Self::from_canonical(ascii.strip_suffix('.').unwrap_or(&ascii)).map_err(malformed)
    }
}

impl TryFrom<String> for DomainName {
    type Error = TargetError;

    fn try_from(text: String) -> Result<Self, TargetError> {
        text.parse()
    }
}

impl From<DomainName> for String {
    fn from(name: DomainName) -> Self {
        name.0.into_string()
    }
}

impl<'de> Deserialize<'de> for DomainName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let from_people = deserializer.is_human_readable();
        let text = String::deserialize(deserializer)?;
        if from_people {
            return text.parse().map_err(serde::de::Error::custom);
        }
        Self::from_canonical(&text).map_err(serde::de::Error::custom)
    }
}

/// What programs that parse URLs and many resolvers take for a v4 address (WHATWG URL, "ends in a number checker").
fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    let hex =
        last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    hex || last.bytes().all(|byte| byte.is_ascii_digit())
}
