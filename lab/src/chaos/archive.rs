//! Backups taken while others write: whole, or not at all; and at the end one of them is put back.

use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use reqwest::StatusCode;
use sha2::{Digest, Sha256};

use super::caller::{Caller, REVISION_HEADER};
use super::history::Moment;

/// Longest pause between two backups of a node.
const LONGEST_PAUSE: Duration = Duration::from_secs(6);
/// How long one may take; most take far less than a second.
const BACKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// SHA-256 of all bytes before the footer, in hexadecimal digits.
const SHA256_HEADER: &str = "x-outputguard-backup-sha256";
/// The footer repeats it, bytes.
const FOOTER_BYTES: usize = 32;

/// A whole backup.
#[derive(Debug, Clone)]
pub(super) struct Saved {
    pub(super) node: usize,
    pub(super) invoked: Moment,
    pub(super) returned: Moment,
    /// What it holds: everything up to here.
    pub(super) revision: u64,
    pub(super) bytes: Vec<u8>,
}

/// What came of asking for one.
#[derive(Debug)]
pub(super) enum Taken {
    Whole(Saved),
    /// The node could not.
    Refused,
    /// It broke off.
    Lost,
    /// It was complete, and wrong.
    Wrong(String),
}

/// How long to wait before the next one.
pub(super) fn pause(dice: &mut StdRng) -> Duration {
    LONGEST_PAUSE.mul_f64(dice.random::<f64>())
}

/// Takes a backup of `node`, with times measured from `start`.
pub(super) async fn take(caller: &Caller, node: usize, start: Instant) -> Taken {
    let invoked = Moment(start.elapsed());
    let response = match caller.backup(node, BACKUP_TIMEOUT).send().await {
        Ok(response) => response,
        Err(error) if error.is_connect() => return Taken::Refused,
        Err(_) => return Taken::Lost,
    };
    let status = response.status();
    let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
    let (revision, sum) = (header(REVISION_HEADER), header(SHA256_HEADER));
    let Ok(bytes) = response.bytes().await else { return Taken::Lost };
    match status {
        StatusCode::OK => {}
        StatusCode::SERVICE_UNAVAILABLE => return Taken::Refused,
        StatusCode::GATEWAY_TIMEOUT => return Taken::Lost,
        _ => return Taken::Wrong(format!("was answered {status}: {}", String::from_utf8_lossy(&bytes))),
    }
    let Some(revision) = revision.and_then(|revision| revision.parse().ok()) else {
        return Taken::Wrong("has no revision".to_owned());
    };
    match check(&bytes, sum.as_deref()) {
        Ok(()) => {
            let returned = Moment(start.elapsed());
            Taken::Whole(Saved { node, invoked, returned, revision, bytes: bytes.to_vec() })
        }
        Err(reason) => Taken::Wrong(format!("of revision {revision} and {} bytes {reason}", bytes.len())),
    }
}

fn check(bytes: &[u8], sum: Option<&str>) -> Result<(), String> {
    let body = bytes.len().checked_sub(FOOTER_BYTES).ok_or("is too short")?;
    let (body, footer) = bytes.split_at(body);
    let computed = Sha256::digest(body);
    if computed.as_slice() != footer {
        return Err("does not have the checksum in its footer".to_owned());
    }
    let computed = computed.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    if sum != Some(computed.as_str()) {
        return Err(format!("has SHA-256 {computed}, and the header says {sum:?}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_held_to_its_footer_and_its_header() {
        let sum = Sha256::digest(b"state");
        let hex = sum.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        let mut file = b"state".to_vec();
        file.extend_from_slice(&sum);
        assert_eq!(check(&file, Some(&hex)), Ok(()));
        assert!(check(&file, None).is_err());
        assert!(check(&file[1..], Some(&hex)).is_err());
        assert!(check(&file[..8], Some(&hex)).is_err());
    }
}
