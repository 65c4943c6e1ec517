//! The file with the first admin token: what an operator put there, or a fresh one, written once for its owner alone.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use raft_store::command::Role;

use crate::auth::secret::Secret;
use crate::auth::token;

/// The token's text.
///
/// # Errors
/// Action, file, reason.
pub(crate) fn ensure(path: &Path) -> Result<Secret, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let text = text.trim();
            if text.is_empty() || text.len() > token::MAX_TOKEN_TEXT_BYTES {
                return Err(format!(
                    "{} holds no token; put one line of at most {} characters there, or remove the file so that a \
                     token is made",
                    path.display(),
                    token::MAX_TOKEN_TEXT_BYTES
                ));
            }
            Ok(Secret::new(text.to_owned()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secret = token::generate(Role::Admin);
            write_new(path, secret.expose())
                .map_err(|error| format!("write admin token to {}: {error}", path.display()))?;
            Ok(secret)
        }
        Err(error) => Err(format!("read admin token from {}: {error}", path.display())),
    }
}

/// Whole or not at all, never over an existing file, on the disk before it returns.
fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{:016x}.tmp", rand::random::<u64>()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            writeln!(file, "{text}")?;
            file.sync_all()
        })
        .and_then(|()| std::fs::hard_link(&temporary, path));
    let _ = std::fs::remove_file(&temporary);
    written?;
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_token_is_made_once_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/admin.token");
        let first = ensure(&path).unwrap();
        assert_eq!(token::parse(first.expose()), Ok(Role::Admin));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(ensure(&path).unwrap().expose(), first.expose());
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn a_token_that_was_put_there_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "  my own secret \n").unwrap();
        assert_eq!(ensure(&path).unwrap().expose(), "my own secret");
        std::fs::write(&path, "\n").unwrap();
        assert!(ensure(&path).unwrap_err().contains("holds no token"));
    }
}
