//! What a process has taken so far.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Memory and processor time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) rss_mib: f64,
    /// At its highest.
    pub(crate) peak_mib: f64,
    /// Processor time of all its threads.
    pub(crate) busy: Duration,
}

impl Usage {
    /// Of the process `pid`, from proc(5).
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("read {path}"))
        };
        let (status, stat) = (read("status")?, read("stat")?);
        let mib = |key: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let kib =
                line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("no {key}"))?;
            Ok(kib.parse::<f64>()? / 1024.0)
        };
        // Fields 14 and 15 of proc_pid_stat(5); the second one, in parentheses, may hold spaces.
        let ticks = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        let ticks = ticks.map(str::parse::<f64>).sum::<Result<f64, _>>().context("processor time")?;
        // SAFETY: takes a number and gives one.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
        Ok(Self {
            rss_mib: mib("VmRSS:")?,
            peak_mib: mib("VmHWM:")?,
            busy: Duration::from_secs_f64(ticks / per_second),
        })
    }
}
