//! Who a peer may say it is: the certificate it showed must name the member whose id it uses. A certificate of the CA that
//! belongs to another node, or to something else altogether, is no pass to speak for a member.
//!
//! An id that this node does not know cannot be checked: a node that was away, or is new, learns of members from a leader
//! that it has never heard of.

use openraft::async_runtime::WatchReceiver as _;
use raft_store::NodeInfo;
use raft_store::types::NodeId;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;

use super::wire::{Refusal, Request};
use crate::cluster::Cluster;
use crate::tls::host_of;

/// What the other end of a connection showed.
#[derive(Debug, Default)]
pub(super) struct PeerCertificate {
    leaf: Option<CertificateDer<'static>>,
    /// For the log: the node's own name, and where it is reached.
    names: String,
    /// The member it was last found to name.
    proven: Option<NodeId>,
}

impl PeerCertificate {
    pub(super) fn of(chain: Option<&[CertificateDer<'_>]>) -> Self {
        let leaf = chain.and_then(<[_]>::first).map(|leaf| leaf.clone().into_owned());
        let names = leaf.as_ref().map(names).unwrap_or_default();
        Self { leaf, names, proven: None }
    }

    pub(super) fn names(&self) -> &str {
        &self.names
    }

    /// Refuses a request in the name of a member that the certificate does not name.
    pub(super) fn check(
        &mut self,
        cluster: &Cluster,
        from: NodeId,
        request: &Request,
    ) -> Result<(), Refusal> {
        if !cluster.peers().tls().verifies_peer_names() || !acts(request) {
            return Ok(());
        }
        if let Request::Join { node, .. } = request {
            self.name(node)?;
        }
        if self.proven == Some(from) {
            return Ok(());
        }
        let member = {
            let metrics = cluster.raft().metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().get_node(&from).cloned()
        };
        if let Some(member) = member {
            self.name(&member)?;
            self.proven = Some(from);
        }
        Ok(())
    }

    fn name(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let wanted = [node.name.as_str(), host_of(&node.raft_address)];
        let parsed = self.leaf.as_ref().and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
        let mut possible = wanted.into_iter().filter_map(|name| ServerName::try_from(name).ok()).peekable();
        // No certificate can carry such names, so none can be asked for.
        if possible.peek().is_none() {
            return Ok(());
        }
        let named =
            parsed.is_some_and(|parsed| possible.any(|name| verify_server_name(&parsed, &name).is_ok()));
        if named {
            return Ok(());
        }
        Err(Refusal::Unable(format!(
            "it says it is {node}, but its certificate names [{}]; give it a certificate that names {} or {}, or set \
             tls.verify_peer_names: false here",
            self.names, wanted[0], wanted[1]
        )))
    }
}

/// False for questions. Whoever has a certificate of the CA may ask them: a node that runs on a copy of another's data
/// directory finds out by them what it is.
fn acts(request: &Request) -> bool {
    match request {
        Request::Append(_)
        | Request::Vote(_)
        | Request::PreVote(_)
        | Request::TransferLeader(_)
        | Request::SnapshotBegin { .. }
        | Request::SnapshotChunk(_)
        | Request::SnapshotEnd
        | Request::Propose { .. }
        | Request::ProposeFor { .. }
        | Request::Join { .. }
        | Request::Change(_)
        | Request::ChangeFor { .. }
        | Request::Leaving => true,
        Request::ReadIndex { .. }
        | Request::Status
        | Request::Probe { .. }
        | Request::Misses { .. }
        | Request::Identify
        | Request::Members
        | Request::LogEnd
        | Request::Room
        | Request::Process
        | Request::Features
        | Request::Denied(_)
        | Request::Traffic { .. }
        | Request::NameLookups(_) => false,
    }
}

fn names(leaf: &CertificateDer<'static>) -> String {
    let Ok(leaf) = webpki::EndEntityCert::try_from(leaf) else { return String::new() };
    let names: Vec<_> = leaf.valid_dns_names().filter(|name| *name != "localhost").collect();
    names.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(names: &[&str]) -> PeerCertificate {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let pair = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(names).unwrap().self_signed(&pair).unwrap();
        PeerCertificate::of(Some(&[cert.der().clone()]))
    }

    fn node(name: &str, address: &str) -> NodeInfo {
        NodeInfo { name: name.to_owned(), raft_address: address.to_owned() }
    }

    #[test]
    fn a_certificate_speaks_for_a_node_by_its_name_or_by_its_address() {
        let member = node("server-2", "10.1.0.2:8081");
        for names in [&["server-2"][..], &["10.1.0.2"], &["other", "server-2"]] {
            shown(names).name(&member).unwrap();
        }
        shown(&["*.og.example"]).name(&node("b", "b.og.example:8081")).unwrap();
        shown(&["fd00::2"]).name(&node("b", "[fd00::2]:8081")).unwrap();
        shown(&["a"]).name(&node("a..b", "a..b:8081")).unwrap();
        for names in [&["server-3"][..], &["10.1.0.3"], &["localhost"], &["server-2.example"]] {
            let refused = shown(names).name(&member).unwrap_err().to_string();
            for part in ["server-2 at 10.1.0.2:8081", "names server-2 or 10.1.0.2", "verify_peer_names"] {
                assert!(refused.contains(part), "{refused}");
            }
        }
        PeerCertificate::default().name(&member).unwrap_err();
    }
}
