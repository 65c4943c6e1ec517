//! Who this disk is: the node's id, drawn once. It never changes while the disk lives and never comes back when the
//! disk is lost (a known id with an empty log could split the cluster).

use std::fs;
use std::io;
use std::path::Path;

use crate::disk::Disk;
use crate::error::OpenError;
use crate::layout::DATA_VERSION;
use crate::types::NodeId;

const FILE_NAME: &str = "identity";
const FIRST_WORD: &str = "outputguard-data";

/// Reads the identity in `dir`; `None` when there is none yet.
pub(crate) fn read(dir: &Path) -> Result<Option<NodeId>, OpenError> {
    let path = dir.join(FILE_NAME);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(OpenError::Identity { path, reason: "it is not text".to_owned() });
        }
        Err(error) => return Err(OpenError::at(path)(error)),
    };
    // The version comes first and alone, so that any later program's file can be told from a damaged one.
    let Some((version, rest)) = text.split_once('\n').and_then(|(first, rest)| {
        let version: u32 = first.strip_prefix(FIRST_WORD)?.trim().parse().ok()?;
        Some((version, rest))
    }) else {
        return Err(OpenError::Identity {
            path,
            reason: format!("its first line is not `{FIRST_WORD} <version>`"),
        });
    };
    if version > DATA_VERSION {
        return Err(OpenError::NewerVersion { path, found: version, known: DATA_VERSION });
    }
    let id = rest.strip_suffix('\n').and_then(|line| line.strip_prefix("node ")?.parse().ok());
    match id {
        Some(id) => Ok(Some(id)),
        None => {
            Err(OpenError::Identity { path, reason: "its second line is not `node <number>`".to_owned() })
        }
    }
}

/// Writes the identity, once.
pub(crate) fn write(disk: &Disk, dir: &Path, id: NodeId) -> Result<(), OpenError> {
    let path = dir.join(FILE_NAME);
    disk.replace_file(&path, format_identity(id).as_bytes()).map_err(OpenError::at(path))
}

fn format_identity(id: NodeId) -> String {
    format!("{FIRST_WORD} {DATA_VERSION}\nnode {id}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_file_has_these_exact_bytes() {
        assert_eq!(format_identity(u64::MAX), "outputguard-data 1\nnode 18446744073709551615\n");
    }

    #[test]
    fn a_written_identity_is_read_again_and_a_newer_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        write(&Disk::default(), dir.path(), 42).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(42));
        fs::write(dir.path().join(FILE_NAME), "outputguard-data 99\nsomething new\n").unwrap();
        assert!(matches!(read(dir.path()), Err(OpenError::NewerVersion { found: 99, known: 1, .. })));
        for damaged in
            ["", "outputguard-data 1\n", "outputguard-data 1\nnode 12", "outputguard-data x\nnode 1\n"]
        {
            fs::write(dir.path().join(FILE_NAME), damaged).unwrap();
            assert!(matches!(read(dir.path()), Err(OpenError::Identity { .. })), "{damaged:?}");
        }
    }
}
