//! What the sets refused, in the words of the driver.

use super::FirewallError;
use super::ipset::{IpsetError, describe};

/// All failures of one call as one error.
pub(super) fn all_done(mut failures: Vec<IpsetError>) -> Result<(), FirewallError> {
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0).into()),
        count => {
            let reasons: Vec<String> = failures.iter().map(ToString::to_string).collect();
            let action = format!("change sets ({count} failures)");
            Err(FirewallError::Failed { action, reason: reasons.join("; ") })
        }
    }
}

impl From<IpsetError> for FirewallError {
    fn from(error: IpsetError) -> Self {
        match &error {
            _ if error.is_unsupported() => Self::Missing(format!(
                "{error}; run `modprobe -a ip_set_hash_net ip_set_hash_netport xt_set` on a kernel with ipset"
            )),
            IpsetError::Kernel { action, code } if *code == libc::EPERM => {
                Self::Missing(format!("{action}: permission denied; run as root or with CAP_NET_ADMIN"))
            }
            IpsetError::Kernel { action, code } => {
                Self::Failed { action: action.clone(), reason: describe(*code) }
            }
            IpsetError::Socket { action, source } => {
                Self::Failed { action: action.clone(), reason: source.to_string() }
            }
            IpsetError::Malformed { action, reason } => {
                Self::Failed { action: action.clone(), reason: (*reason).to_owned() }
            }
        }
    }
}
