//! Texts of entries, in as little memory as a million of them ask for. In JSON, on disk and on the wire they are what
//! strings and maps of strings are.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::xxh3_64;

/// Texts a thread remembers, to share them with equal ones that it makes later. A power of two.
const RECENT_TEXTS: usize = 64;
/// Longer ones are hardly ever equal, and are not remembered: what a thread holds on to is bounded.
const MAX_RECENT_BYTES: usize = 256;

thread_local! {
    /// Each text has one place, by its hash.
    static RECENT: RefCell<[SharedText; RECENT_TEXTS]> = const { RefCell::new([const { SharedText(None) }; RECENT_TEXTS]) };
}

/// A text that many entries have in common: who added them, who answers for them, the request they came from. One
/// pointer; equal ones share their bytes if the same thread made them lately. An empty one has none.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SharedText(Option<Arc<Box<str>>>);

impl SharedText {
    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().map_or("", |text| text)
    }
}

impl From<&str> for SharedText {
    fn from(text: &str) -> Self {
        let new = || Self(Some(Arc::new(text.into())));
        if text.is_empty() {
            return Self(None);
        }
        if text.len() > MAX_RECENT_BYTES {
            return new();
        }
        let place = xxh3_64(text.as_bytes()) as usize % RECENT_TEXTS;
        // A thread that is about to end remembers nothing any more.
        let known = RECENT.try_with(|recent| {
            let known = &mut recent.borrow_mut()[place];
            if known.as_str() != text {
                *known = new();
            }
            known.clone()
        });
        known.unwrap_or_else(|_| new())
    }
}

impl From<String> for SharedText {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl Deref for SharedText {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Debug for SharedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl fmt::Display for SharedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl Serialize for SharedText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for SharedText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyText;

        impl Visitor<'_> for AnyText {
            type Value = SharedText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<SharedText, E> {
                Ok(text.into())
            }
        }

        deserializer.deserialize_str(AnyText)
    }
}

/// Free key/value pairs. Most entries have none, and then they are one empty pointer.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Labels(
    #[allow(clippy::box_collection, reason = "one pointer instead of three words")]
    Option<Box<BTreeMap<String, String>>>,
);

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        Self((!labels.is_empty()).then(|| Box::new(labels)))
    }
}

impl Deref for Labels {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &BTreeMap<String, String> {
        self.0.as_deref().unwrap_or(&NO_LABELS)
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use bincode::config::standard;
    use bincode::serde::{decode_from_slice, encode_to_vec};

    use super::*;

    fn is_shared(one: &SharedText, other: &SharedText) -> bool {
        one.0.as_ref().zip(other.0.as_ref()).is_some_and(|(one, other)| Arc::ptr_eq(one, other))
    }

    #[test]
    fn equal_texts_share_their_bytes_however_they_were_made() {
        let text = SharedText::from("ops");
        let read: SharedText = serde_json::from_str("\"o\\u0070s\"").unwrap();
        let (decoded, _) = decode_from_slice::<SharedText, _>(b"\x03ops", standard()).unwrap();
        assert!([&read, &decoded].into_iter().all(|other| is_shared(&text, other) && text == *other));
        assert!(!is_shared(&text, &SharedText::from("dev")));
        assert!(is_shared(&text, &SharedText::from("ops".to_owned())));
    }

    #[test]
    fn an_empty_text_takes_no_memory_and_a_long_one_is_not_held_on_to() {
        assert_eq!(SharedText::from(""), SharedText::default());
        assert!(SharedText::from("").0.is_none());
        let long = "x".repeat(MAX_RECENT_BYTES + 1);
        let (one, other) = (SharedText::from(long.as_str()), SharedText::from(long.as_str()));
        assert!(one == other && !is_shared(&one, &other) && *one == *long);
    }

    #[test]
    fn texts_and_labels_have_the_bytes_of_strings_and_maps() {
        let labels = BTreeMap::from([("team".to_owned(), "web".to_owned())]);
        for labels in [labels, BTreeMap::new()] {
            let plain = ("ops".to_owned(), String::new(), labels.clone());
            let ours = (SharedText::from("ops"), SharedText::default(), Labels::from(labels));
            let bytes = encode_to_vec(&ours, standard()).unwrap();
            assert_eq!(bytes, encode_to_vec(&plain, standard()).unwrap());
            assert_eq!(
                decode_from_slice::<(SharedText, SharedText, Labels), _>(&bytes, standard()).unwrap().0,
                ours
            );
            assert_eq!(serde_json::to_string(&ours).unwrap(), serde_json::to_string(&plain).unwrap());
        }
    }
}
