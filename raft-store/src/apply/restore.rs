//! Putting a backup in place.

use std::sync::Arc;

use allowlist::class::check_address;
use allowlist::{Entry, Target};

use super::{Step, gained};
use crate::command::{Origin, Reply, RestorePart};
use crate::state::{EventKind, Resolution};

impl Step<'_> {
    /// Parts that are in place already count as put there: a restore that broke off is finished by another one.
    pub(super) fn restore(&mut self, origin: &Arc<Origin>, parts: &[RestorePart]) -> Reply {
        let (mut entries, mut tokens) = (0, 0);
        let (mut skipped_tokens, mut refused) = (Vec::new(), Vec::new());
        for part in parts {
            match part {
                RestorePart::Entry { entry, resolution } => {
                    if self.restore_entry(origin, entry, resolution.as_ref()) {
                        entries += 1;
                    } else {
                        refused.push(entry.id);
                    }
                }
                RestorePart::Token(token) => match self.add_token(origin, token) {
                    Reply::Done | Reply::Unchanged => tokens += 1,
                    _ => skipped_tokens.push(token.name.clone()),
                },
            }
        }
        Reply::Restored { entries, tokens, skipped_tokens, refused }
    }

    /// False when another entry has its id or its target and ports.
    fn restore_entry(
        &mut self,
        origin: &Arc<Origin>,
        entry: &Entry,
        resolution: Option<&Resolution>,
    ) -> bool {
        if let Some(there) = self.state.entries.get(&entry.id) {
            return **there == *entry;
        }
        if self.state.entry_by_key(&entry.target, &entry.ports).is_some() {
            return false;
        }
        if let Target::Domain(domain) = &entry.target
            && !self.state.resolutions.contains_key(domain)
        {
            let mut known = resolution.cloned().unwrap_or_default();
            // Not by a backup either: a private address must not be published in a domain's name.
            known.addresses.retain(|address, _| check_address(*address).is_ok());
            self.state.resolutions.insert(domain.clone(), Arc::new(known));
        }
        // A protected one does not end by itself.
        let expires_at_ms = entry.expires_at_ms.filter(|_| !entry.protected);
        let entry = Arc::new(Entry { expires_at_ms, ..entry.clone() });
        let touched = &mut self.touched;
        self.state.link(Arc::clone(&entry), |element| gained(touched, element));
        self.tell(origin, EventKind::EntryAdded(entry));
        true
    }
}
