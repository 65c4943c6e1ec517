//! Closing the way, before anything at a start can fail and whenever somebody opened it.

use super::FirewallError;
use super::chains::Chains;
use super::layout::{Family, KernelOptions};
use super::rules::{Chain, Mode};

/// Makes sure that nothing passes around our rules, before anything else at start can fail: whatever keeps a gateway
/// from starting after a boot, the machine forwards nothing. Chains that stand already, with what they let through,
/// are left as they are; sets are not touched.
///
/// # Errors
/// [`FirewallError`] when `iptables` or `ip6tables` could not be run or refused.
pub fn close_forwarding(options: &KernelOptions) -> Result<(), FirewallError> {
    let chains = chains(options);
    for difference in close_where_open(&chains)? {
        tracing::debug!("{difference}; now it is");
    }
    close_host(&chains, &guarded(options))
}

/// An audit keeps nobody from anything.
pub(super) fn guarded(options: &KernelOptions) -> KernelOptions {
    let guard = options.guard.clone().filter(|_| options.policy.mode == Mode::Enforce);
    KernelOptions { guard, ..options.clone() }
}

/// Guards the machine itself where it is to be guarded and is not yet; that needs no sets.
pub(super) fn close_host(chains: &[Chains; 2], options: &KernelOptions) -> Result<(), FirewallError> {
    if options.guard.is_none() {
        return Ok(());
    }
    for (chains, family) in chains.iter().zip(Family::BOTH) {
        for chain in Chain::HOST {
            if chains.body(chain)?.is_none_or(|present| present.is_empty()) {
                chains.set_body(chain, &chain.closed_body(family, options))?;
            }
            chains.lead_in(chain)?;
        }
    }
    Ok(())
}

/// The same beside a process that says it is the gateway here: where its chain and a jump to it stand, it is left alone,
/// whatever they say, and only where they are missing the way is closed.
///
/// # Errors
/// As [`close_forwarding`].
pub fn close_unguarded(options: &KernelOptions) -> Result<(), FirewallError> {
    let mut failure = None;
    for chains in &chains(options) {
        if let Err(error) = chains.close_where_unguarded() {
            failure = failure.or(Some(error));
        }
    }
    failure.map_or(Ok(()), Err)
}

pub(super) fn chains(options: &KernelOptions) -> [Chains; 2] {
    Family::BOTH.map(|family| Chains::new(family, &options.internal_cidrs, options.policy.mode))
}

/// Closes the way wherever packets could pass around our rules: without a jump, a chain or its final drop. What
/// stands is left as it is. It needs no sets, and goes on to the other family past an error. Says which jumps were
/// wrong; whoever puts the rules back says which of those.
pub(super) fn close_where_open(chains: &[Chains; 2]) -> Result<Vec<String>, FirewallError> {
    let mut different = Vec::new();
    let mut failure = None;
    for chains in chains {
        match chains.close_where_open() {
            Ok(difference) => different.extend(difference),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(different), Err)
}
