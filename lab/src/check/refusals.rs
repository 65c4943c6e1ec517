//! Step 6: what may not enter is refused, saying what is wrong with it.

use anyhow::{Context, Result, ensure};

use crate::api::NewEntry;
use crate::lab::Lab;

/// Target, and a piece of the reason a person must be able to read.
const BAD: [(&str, &str); 12] = [
    ("10.1.2.3", "10.0.0.0/8"),
    ("192.168.1.0/24", "192.168.0.0/16"),
    ("172.0.0.0/8", "172.16.0.0/12"),
    ("100.64.0.1", "100.64.0.0/10"),
    ("127.0.0.1", "127.0.0.0/8"),
    ("fd00::1", "fc00::/7"),
    ("::ffff:10.0.0.1", "10.0.0.0/8"),
    ("64:ff9b::a00:1", "10.0.0.0/8"),
    ("8.8.8.8/24", "8.8.8.8/24"),
    ("not a domain!", "not a domain!"),
    ("localhost", "localhost"),
    ("*.example.com", "*.example.com"),
];

/// Step 6.
pub(super) fn bad_targets(lab: &mut Lab) -> Result<()> {
    let api = lab.api()?;
    let before = api.entries()?.len();
    for (target, reason) in BAD {
        let error = api.add(&NewEntry::to(target)).err().with_context(|| format!("{target} was accepted"))?;
        let problem =
            error.problem().with_context(|| format!("{target}: not a problem document: {error}"))?;
        ensure!(problem.status == 422, "{target}: should be 422: {error}");
        ensure!(
            problem.detail.contains(reason),
            "{target}: the reason should name {reason}: {}",
            problem.detail
        );
        ensure!(
            !problem.code.is_empty() && !problem.title.is_empty(),
            "{target}: no code or title: {problem:?}"
        );
    }
    let error =
        api.add(&NewEntry::to("1.1.1.60").port("tcp/70000")).err().context("port 70000 was accepted")?;
    let problem = error.problem().with_context(|| format!("tcp/70000: not a problem document: {error}"))?;
    ensure!(problem.status == 422 && problem.detail.contains("70000"), "tcp/70000: {error}");
    for body in ["{", r#"{"target": 5}"#, r#"{"target": "1.1.1.60", "color": "red"}"#] {
        let error = api.add_raw(body).err().with_context(|| format!("{body} was accepted"))?;
        let problem = error.problem().with_context(|| format!("{body}: not a problem document: {error}"))?;
        ensure!((400..500).contains(&problem.status) && !problem.detail.is_empty(), "{body}: {error}");
    }
    let after = api.entries()?.len();
    ensure!(before == after, "refused entries were stored: {before} before, {after} after");
    Ok(())
}
