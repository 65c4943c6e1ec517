//! Certificates that change while the node runs: files that were replaced are loaded, ours are renewed before they end.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{CA_CERT_FILE, NodeTls};

/// How often the files are looked at.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How often a certificate of our own CA is looked at for renewal.
pub const RENEWAL_INTERVAL: Duration = Duration::from_secs(3_600);

/// Files that could not be used are tried again after this time, also when nobody touches them: the clock may have been
/// wrong, or the disk.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// How often what is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    /// The files are looked at.
    pub check: Duration,
    /// A certificate of our own CA is looked at for renewal.
    pub renewal: Duration,
}

impl Default for Intervals {
    fn default() -> Self {
        Self { check: CHECK_INTERVAL, renewal: RENEWAL_INTERVAL }
    }
}

/// What is counted of certificates.
#[derive(Debug, Clone)]
pub struct TlsMetrics {
    expiry: IntGaugeVec,
    reloads: IntCounterVec,
}

impl TlsMetrics {
    /// Registers the families in `registry`.
    ///
    /// # Errors
    /// A family of the same name is there already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let expiry = IntGaugeVec::new(
            Opts::new(
                "outputguard_tls_certificate_expiry_timestamp_seconds",
                "When the certificate in use ends, Unix time",
            ),
            &["certificate"],
        )?;
        let reloads = IntCounterVec::new(
            Opts::new(
                "outputguard_tls_reloads_total",
                "Changed certificate files that were taken into use, or could not be",
            ),
            &["result"],
        )?;
        for result in ["ok", "failed"] {
            reloads.with_label_values(&[result]);
        }
        registry.register(Box::new(expiry.clone()))?;
        registry.register(Box::new(reloads.clone()))?;
        Ok(Self { expiry, reloads })
    }

    fn show(&self, tls: &NodeTls) {
        let (node, ca) = tls.expiry_s();
        for (certificate, at) in [("node", node), ("ca", ca)] {
            if let Some(at) = at {
                self.expiry.with_label_values(&[certificate]).set(at);
            }
        }
    }
}

/// What tells that a file was replaced or written.
type Fingerprint = Vec<Option<(u64, u64, i64, i64)>>;

/// Follows the files of one node.
pub struct Reloader {
    tls: NodeTls,
    metrics: TlsMetrics,
    /// Of what is in use.
    loaded: Fingerprint,
    /// Of what could not be used, and when it was last tried.
    failed: Option<(Fingerprint, Instant)>,
    /// Seen once; a second look that sees the same means that nobody is writing any more.
    settling: Option<Fingerprint>,
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reloader")
    }
}

impl Reloader {
    /// Follows the files that `tls` was made of.
    pub fn new(tls: NodeTls, metrics: TlsMetrics) -> Self {
        metrics.show(&tls);
        let loaded = fingerprint(&tls);
        Self { tls, metrics, loaded, failed: None, settling: None }
    }

    /// Looks at the files at these intervals, and at once when `hangup` says so, until `stop`.
    pub async fn run(mut self, intervals: Intervals, mut hangup: impl AsyncFnMut(), stop: CancellationToken) {
        let Intervals { check, renewal } = intervals;
        let mut ticks = tokio::time::interval(check);
        let mut renewal = tokio::time::interval_at(Instant::now() + renewal, renewal);
        loop {
            let (told, renew) = tokio::select! {
                () = stop.cancelled() => return,
                () = hangup() => (true, true),
                _ = ticks.tick() => (false, false),
                _ = renewal.tick() => (true, true),
            };
            // Small files, but on a disk.
            let looked = tokio::task::spawn_blocking(move || {
                if renew {
                    self.renew();
                }
                self.look(told);
                self
            });
            match looked.await {
                Ok(reloader) => self = reloader,
                Err(error) => {
                    tracing::error!(%error, "certificates are not followed any more");
                    return;
                }
            }
        }
    }

    /// Loads what changed; `at_once` does not wait until the files have settled, nor until a failure is a while ago.
    pub fn look(&mut self, at_once: bool) {
        self.look_at(at_once, Instant::now());
    }

    fn look_at(&mut self, at_once: bool, time: Instant) {
        let now = fingerprint(&self.tls);
        if now == self.loaded {
            (self.settling, self.failed) = (None, None);
            return;
        }
        match &self.failed {
            Some((failed, at)) if *failed == now && !at_once && time < *at + RETRY_INTERVAL => return,
            Some((failed, _)) if *failed == now => {}
            _ if !at_once && self.settling.as_ref() != Some(&now) => {
                self.settling = Some(now);
                return;
            }
            _ => {}
        }
        self.settling = None;
        match self.tls.reload() {
            Ok(()) => {
                (self.loaded, self.failed) = (now, None);
                self.metrics.reloads.with_label_values(&["ok"]).inc();
                self.metrics.show(&self.tls);
                tracing::info!(directory = %self.tls.dir().display(), "new certificates are in use");
            }
            Err(error) => {
                self.failed = Some((now, time));
                self.metrics.reloads.with_label_values(&["failed"]).inc();
                tracing::warn!(%error, "certificate files changed, but cannot be used; the old ones stay in use");
            }
        }
    }

    fn renew(&self) {
        if let Err(error) = self.tls.renew() {
            tracing::warn!(%error, "look whether the node's certificate has to be renewed");
        }
    }
}

fn fingerprint(tls: &NodeTls) -> Fingerprint {
    let name = tls.name();
    let files = [CA_CERT_FILE.to_owned(), format!("{name}.pem"), format!("{name}.key")];
    let look = |file: String| -> Option<(u64, u64, i64, i64)> {
        let path: PathBuf = tls.dir().join(file);
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    };
    files.into_iter().map(look).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::SystemTime;

    use super::*;

    /// Writes without a trace in the file's time, as a fault that goes away leaves none.
    fn write_at(path: &Path, content: &[u8], time: SystemTime) {
        std::fs::write(path, content).unwrap();
        std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn files_that_failed_once_are_tried_again_after_a_while_and_when_told() {
        let dir = tempfile::tempdir().unwrap();
        let tls = NodeTls::prepare(dir.path(), "a", &[]).unwrap();
        let metrics = TlsMetrics::new(&Registry::new()).unwrap();
        let count = |result| metrics.reloads.with_label_values(&[result]).get();
        let cert = dir.path().join("a.pem");
        let good = std::fs::read(&cert).unwrap();
        let mut bad = good.clone();
        bad[60] = b'!';
        let start = Instant::now();
        for (told, failures) in [(false, 1), (true, 3)] {
            let mut reloader = Reloader::new(tls.clone(), metrics.clone());
            let changed = SystemTime::now() + Duration::from_secs(failures);
            write_at(&cert, &bad, changed);
            reloader.look_at(true, start);
            assert_eq!(count("failed"), failures);
            reloader.look_at(false, start + RETRY_INTERVAL / 2);
            assert_eq!(count("failed"), failures, "nobody is told each time");
            reloader.look_at(false, start + RETRY_INTERVAL);
            assert_eq!(count("failed"), failures + 1);
            write_at(&cert, &good, changed);
            let done = count("ok");
            reloader.look_at(false, start + RETRY_INTERVAL);
            assert_eq!(count("ok"), done);
            reloader.look_at(told, start + if told { RETRY_INTERVAL } else { 2 * RETRY_INTERVAL });
            assert_eq!(count("ok"), done + 1);
        }
    }
}
