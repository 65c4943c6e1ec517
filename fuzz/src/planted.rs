//! A bug on purpose.

/// Its name among the targets.
pub const NAME: &str = "planted";
/// What it trips over. Chance alone finds these bytes once in 2^48 tries; coverage leads there one byte after the other.
pub const MAGIC: &[u8] = b"oguard";

/// Panics on [`MAGIC`].
pub fn find_me(bytes: &[u8]) {
    let matching = bytes.iter().zip(MAGIC).take_while(|(found, wanted)| found == wanted).count();
    assert!(matching < MAGIC.len(), "the planted bug was found");
}
