//! Whole lists and whole states, from and to files.
//!
//! A file that is written gets its name only when it is complete, checked and on disk; nobody but its owner may read it
//! (a backup holds the hashes of all tokens).

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Body, Method, Response};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::fs::{self, File, OpenOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::args::ListFormat;
use crate::client::Client;

/// Longest wait for a whole list or state; the server's own deadline is shorter.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3_600);
/// Footer of a backup: the SHA-256 of everything before it.
const DIGEST_BYTES: usize = 32;
/// Read from a file at a time.
const PIECE_BYTES: usize = 256 * 1024;

/// What a backup that was written holds.
pub(crate) struct Saved {
    pub(crate) cluster: String,
    pub(crate) revision: String,
    pub(crate) entries: String,
    /// As the server says and as was computed from what arrived.
    pub(crate) sha256: String,
}

/// Writes the list to `file`, or to standard output.
pub(crate) async fn export(
    client: &Client,
    file: Option<&Path>,
    format: Option<ListFormat>,
) -> anyhow::Result<()> {
    let format = format.or_else(|| file.and_then(ListFormat::of_file)).unwrap_or(ListFormat::Yaml);
    let path = format!("/export?format={}", format.as_str());
    let mut response = client.respond(client.request(Method::GET, &path).timeout(TRANSFER_TIMEOUT)).await?;
    match file {
        Some(path) => {
            let mut out = Unfinished::create(path).await?;
            while let Some(piece) = next_piece(&mut response).await? {
                out.write(piece.as_ref()).await?;
            }
            out.finish().await
        }
        None => {
            let mut out = tokio::io::stdout();
            while let Some(piece) = next_piece(&mut response).await? {
                out.write_all(piece.as_ref()).await.context("write to standard output")?;
            }
            out.flush().await.context("write to standard output")
        }
    }
}

/// Sends the list in `file` (`-` for standard input).
pub(crate) async fn import(
    client: &Client,
    file: &Path,
    format: Option<ListFormat>,
    dry_run: bool,
) -> anyhow::Result<Value> {
    let format = format.or_else(|| ListFormat::of_file(file)).unwrap_or(ListFormat::Yaml);
    let body = if file == Path::new("-") {
        let mut list = Vec::new();
        std::io::stdin().lock().read_to_end(&mut list).context("read the list from standard input")?;
        list
    } else {
        fs::read(file).await.with_context(|| format!("read {}", file.display()))?
    };
    let path = if dry_run { "/import?dry_run=true" } else { "/import" };
    let request = client.request(Method::POST, path).timeout(TRANSFER_TIMEOUT);
    client.send(request.header(CONTENT_TYPE, format.media_type()).body(body)).await
}

/// Writes a backup to `file`, once it is checked.
pub(crate) async fn backup(client: &Client, file: &Path) -> anyhow::Result<Saved> {
    let mut response =
        client.respond(client.request(Method::GET, "/backup").timeout(TRANSFER_TIMEOUT)).await?;
    let header = |name: &str| {
        let value = response.headers().get(name).and_then(|value| value.to_str().ok());
        value.map(str::to_owned).with_context(|| format!("the server's answer has no header {name}"))
    };
    let saved = Saved {
        cluster: header("x-outputguard-cluster")?,
        revision: header("x-outputguard-revision")?,
        entries: header("x-outputguard-entries")?,
        sha256: header("x-outputguard-backup-sha256")?,
    };
    let mut out = Unfinished::create(file).await?;
    let mut sum = Footed::default();
    while let Some(piece) = next_piece(&mut response).await? {
        sum.update(piece.as_ref());
        out.write(piece.as_ref()).await?;
    }
    let computed = sum.finish()?;
    if computed != saved.sha256 {
        bail!("what arrived has SHA-256 {computed}, the server says {}; try again", saved.sha256);
    }
    out.finish().await?;
    Ok(saved)
}

/// Sends the backup in `file`, once it is checked.
pub(crate) async fn restore(client: &Client, file: &Path) -> anyhow::Result<Value> {
    let name = file.display();
    let mut bytes = File::open(file).await.with_context(|| format!("open {name}"))?;
    let mut sum = Footed::default();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = bytes.read(&mut piece).await.with_context(|| format!("read {name}"))?;
        if count == 0 {
            break;
        }
        sum.update(&piece[..count]);
    }
    sum.finish().with_context(|| format!("{name} cannot be restored"))?;
    let body = Body::from(File::open(file).await.with_context(|| format!("open {name}"))?);
    client.send(client.request(Method::POST, "/restore").timeout(TRANSFER_TIMEOUT).body(body)).await
}

async fn next_piece(response: &mut Response) -> anyhow::Result<Option<impl AsRef<[u8]> + use<>>> {
    response.chunk().await.context("the answer broke off")
}

/// Sums everything but the last [`DIGEST_BYTES`], which must be the sum.
#[derive(Default)]
struct Footed {
    sum: Sha256,
    tail: Vec<u8>,
}

impl Footed {
    fn update(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        let covered = self.tail.len().saturating_sub(DIGEST_BYTES);
        self.sum.update(&self.tail[..covered]);
        self.tail.drain(..covered);
    }

    /// The sum in hexadecimal digits.
    fn finish(self) -> anyhow::Result<String> {
        let computed = self.sum.finalize();
        if computed.as_slice() != self.tail {
            bail!("backup is damaged: it does not end with its SHA-256; it was cut or changed on the way");
        }
        Ok(computed.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")))
    }
}

/// A file under another name until it is complete. Left unfinished, it goes.
struct Unfinished {
    file: Option<File>,
    temporary: PathBuf,
    path: PathBuf,
}

impl Unfinished {
    async fn create(path: &Path) -> anyhow::Result<Self> {
        let name = path.file_name().with_context(|| format!("{} is no name of a file", path.display()))?;
        let mut temporary = name.to_owned();
        temporary.push(format!(".{}.part", std::process::id()));
        let temporary = path.with_file_name(temporary);
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).await;
        let file = created.with_context(|| format!("create {}", temporary.display()))?;
        Ok(Self { file: Some(file), temporary, path: path.to_owned() })
    }

    async fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(bytes).await.with_context(|| format!("write {}", self.temporary.display()))
    }

    async fn finish(mut self) -> anyhow::Result<()> {
        let path = self.path.clone();
        let Some(mut file) = self.file.take() else { return Ok(()) };
        let kept = async {
            file.flush().await?;
            file.sync_all().await?;
            fs::rename(&self.temporary, &self.path).await?;
            // The name is on disk when its directory is.
            let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
            File::open(dir.unwrap_or(Path::new("."))).await?.sync_all().await
        };
        kept.await.with_context(|| format!("write {}", path.display()))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Gone already when it got its name.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_footer_is_found_however_the_pieces_fall_and_every_change_is_seen() {
        let content: Vec<u8> = (0..200).collect();
        let file = [&content[..], &Sha256::digest(&content)].concat();
        let finish = |bytes: &[u8], piece: usize| {
            let mut sum = Footed::default();
            bytes.chunks(piece).for_each(|piece| sum.update(piece));
            sum.finish()
        };
        for piece in [1, 31, 32, 33, 1_000] {
            finish(&file, piece).unwrap();
            finish(&file[..file.len() - 1], piece).unwrap_err();
        }
        let mut flipped = file;
        flipped[100] ^= 1;
        assert!(finish(&flipped, 7).unwrap_err().to_string().starts_with("backup is damaged"));
        finish(&[], 1).unwrap_err();
    }

    #[tokio::test]
    async fn an_unfinished_file_leaves_nothing_and_a_finished_one_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = std::env::temp_dir().join(format!("outputguardctl-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("list.yaml");
        let mut file = Unfinished::create(&path).await.unwrap();
        file.write(b"half").await.unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        let mut file = Unfinished::create(&path).await.unwrap();
        file.write(b"whole").await.unwrap();
        file.finish().await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
