//! Entries: how they come, change and go.

use std::sync::Arc;

use allowlist::{Entry, EntryId, Target};

use super::{Loss, MAX_DRAINED_PER_BATCH, Step, elements, gained};
use crate::command::{CommandRefusal, EntryUpdate, NewEntry, Origin, Reply};
use crate::state::{EventKind, Resolution};

impl Step<'_> {
    pub(super) fn add_entries(&mut self, origin: &Arc<Origin>, entries: &[NewEntry]) -> Reply {
        let (mut created, mut existing, mut refused) = (0, 0, 0);
        for entry in entries {
            match self.add_entry(origin, entry) {
                Reply::Added { created: true, .. } => created += 1,
                Reply::Added { created: false, .. } => existing += 1,
                _ => refused += 1,
            }
        }
        Reply::AddedMany { created, existing, refused }
    }

    pub(super) fn add_entry(&mut self, origin: &Arc<Origin>, new: &NewEntry) -> Reply {
        if let Some(entry) = self.state.entry_by_key(&new.target, &new.ports).cloned() {
            // Asking again for more protection, or for longer, gives it: what somebody was promised does not go because
            // somebody else asked for less.
            let id = entry.id;
            let protected = entry.protected || new.protected;
            let longer = entry.expires_at_ms.zip(new.expires_at_ms).map(|(one, other)| one.max(other));
            let expires_at_ms = longer.filter(|_| !protected);
            if protected != entry.protected || expires_at_ms != entry.expires_at_ms {
                let entry = Entry { protected, expires_at_ms, ..Entry::clone(&entry) };
                self.replace_entry(origin, Arc::new(entry));
            }
            return Reply::Added { id, created: false };
        }
        if self.state.entries.contains_key(&new.id) {
            return Reply::Refused(CommandRefusal::IdTaken(new.id));
        }
        let entry = Arc::new(new.clone().made_by(&origin.actor, self.at_ms));
        if let Target::Domain(domain) = &entry.target
            && !self.state.resolutions.contains_key(domain)
        {
            let pending = Resolution { changed_at_ms: self.at_ms, ..Resolution::default() };
            self.state.resolutions.insert(domain.clone(), Arc::new(pending));
        }
        let touched = &mut self.touched;
        self.state.link(Arc::clone(&entry), |element| gained(touched, element));
        self.tell(origin, EventKind::EntryAdded(entry));
        Reply::Added { id: new.id, created: true }
    }

    pub(super) fn remove_entry(&mut self, origin: &Arc<Origin>, id: EntryId) -> Reply {
        let Some(entry) = self.state.entries.get(&id).cloned() else {
            return Reply::Refused(CommandRefusal::NoSuchEntry(id));
        };
        if entry.protected {
            self.tell(origin, EventKind::ProtectedRefused(id));
            return Reply::Refused(CommandRefusal::Protected(id));
        }
        self.end_entry(origin, entry);
        Reply::Done
    }

    pub(super) fn expire(&mut self, origin: &Arc<Origin>, ids: &[EntryId]) -> Reply {
        let mut reply = Reply::Unchanged;
        for id in ids {
            let is_over = |entry: &&Arc<Entry>| {
                !entry.protected && entry.expires_at_ms.is_some_and(|ends| ends <= self.at_ms)
            };
            if let Some(entry) = self.state.entries.get(id).filter(is_over).cloned() {
                self.end_entry(origin, entry);
                reply = Reply::Done;
            }
        }
        reply
    }

    /// Takes an entry and everything that only it published out of the state.
    fn end_entry(&mut self, origin: &Arc<Origin>, entry: Arc<Entry>) {
        let id = entry.id;
        for element in elements(&entry, self.state.resolved(&entry)) {
            self.release(element, id, Loss::Revoked);
        }
        self.state.entries.remove(&entry);
        entry.expires_at_ms.map(|at_ms| self.state.expiring.remove(&(at_ms, id)));
        // By now it is none of the entries any more.
        let drained = self.state.may_drain(&entry, self.at_ms, |_| true);
        let room = MAX_DRAINED_PER_BATCH.saturating_sub(self.drained.len());
        self.drained.extend(drained.into_iter().take(room));
        if let Target::Domain(domain) = &entry.target
            && self.state.entries_of(domain).next().is_none()
        {
            self.state.resolutions.remove(domain);
            if let Some(history) = self.state.histories.remove(domain) {
                self.state.remembered -= history.changes().len();
            }
        }
        self.tell(origin, EventKind::EntryRemoved(entry));
    }

    pub(super) fn update_entry(
        &mut self,
        origin: &Arc<Origin>,
        id: EntryId,
        update: &EntryUpdate,
        expiry: Option<Option<u64>>,
    ) -> Reply {
        let Some(entry) = self.state.entries.get(&id).cloned() else {
            return Reply::Refused(CommandRefusal::NoSuchEntry(id));
        };
        let is_weaker = update.protected == Some(false) || expiry.is_some_and(|ends| ends.is_some());
        if entry.protected && is_weaker {
            self.tell(origin, EventKind::ProtectedRefused(id));
            return Reply::Refused(CommandRefusal::Protected(id));
        }
        let mut changed = Entry::clone(&entry);
        if let Some(protected) = update.protected {
            changed.protected = protected;
        }
        if let Some(expires_at_ms) = expiry {
            changed.expires_at_ms = expires_at_ms;
        }
        if changed.protected {
            changed.expires_at_ms = None;
        }
        replace_if_given(&mut changed.comment, update.comment.as_ref());
        replace_if_given(&mut changed.owner, update.owner.as_ref());
        replace_if_given(&mut changed.ticket, update.ticket.as_ref());
        replace_if_given(&mut changed.labels, update.labels.as_ref());
        if changed == *entry {
            return Reply::Unchanged;
        }
        self.replace_entry(origin, Arc::new(changed));
        Reply::Done
    }

    /// Puts `entry` in the place of the one with its id; target and ports are the same, so nothing is published.
    fn replace_entry(&mut self, origin: &Arc<Origin>, entry: Arc<Entry>) {
        self.state.put(Arc::clone(&entry));
        self.tell(origin, EventKind::EntryUpdated(entry));
    }
}

fn replace_if_given<T: Clone>(place: &mut T, given: Option<&T>) {
    if let Some(value) = given {
        place.clone_from(value);
    }
}
