//! The rule that logs denied packets is for people: it goes before the rest does, and comes back when it can.

use std::time::Instant;

use super::{Chain, FirewallError, KernelFirewall};
use crate::firewall::layout::{Family, KernelOptions};
use crate::firewall::rules::Policy;

impl KernelFirewall {
    /// Writes the chain without the log, after the `wanted` rules were refused with `error`; gives what it wrote.
    pub(super) fn write_without_log(
        &mut self,
        family: usize,
        chain: Chain,
        wanted: &[String],
        error: FirewallError,
    ) -> Result<Vec<String>, FirewallError> {
        let without_log = self.logging_to(None);
        let body = chain.body(Family::BOTH[family], &without_log, self.in_use);
        let (Some(group), true) = (self.options.policy.log_group, body != wanted) else { return Err(error) };
        self.chains[family].set_body(chain, &body)?;
        self.log.refuse(&error, group);
        self.options = without_log;
        Ok(body)
    }

    /// Tries again, after a while, to have what is denied logged. The chains are as they should be without.
    pub(super) fn bring_back_log(&mut self) {
        let Some(group) = self.log.due(Instant::now()) else { return };
        let with_log = self.logging_to(Some(group));
        for (at, family) in Family::BOTH.into_iter().enumerate() {
            let body = Chain::Forward.body(family, &with_log, self.in_use);
            let written = self.chains[at].set_body(Chain::Forward, &body);
            if written.is_ok() {
                self.remember_printed(at, Chain::Forward, body.len());
            }
            if let Err(error) = written {
                self.log.refuse(&error, group);
                for family in 0..=at {
                    if let Err(error) = self.write_body(family, Chain::Forward) {
                        tracing::warn!(%error, "rules are not as they should be until they are repaired");
                    }
                }
                return;
            }
        }
        self.options = with_log;
        self.log.accepted();
        if self.watch.is_some() {
            self.watch();
        }
    }

    fn logging_to(&self, log_group: Option<u16>) -> KernelOptions {
        KernelOptions { policy: Policy { log_group, ..self.options.policy }, ..self.options.clone() }
    }
}
