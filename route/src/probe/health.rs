//! When a row of lost or answered probes means that a host went down or came up.

/// Lost probes in a row after which a host is down.
pub const LOSSES_BEFORE_DOWN: u32 = 3;
/// Answered probes in a row after which a host that was down is up.
pub const ANSWERS_BEFORE_UP: u32 = 3;

/// The verdict so far. A host is up until shown otherwise.
#[derive(Debug)]
pub(super) struct Health {
    up: bool,
    against: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { up: true, against: 0 }
    }
}

impl Health {
    /// Takes in one probe. True when it changed the verdict.
    pub(super) fn record(&mut self, answered: bool) -> bool {
        if answered == self.up {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let enough = if self.up { LOSSES_BEFORE_DOWN } else { ANSWERS_BEFORE_UP };
        if self.against < enough {
            return false;
        }
        *self = Self { up: answered, against: 0 };
        true
    }

    pub(super) fn is_up(&self) -> bool {
        self.up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_three_in_a_row_to_change_the_verdict() {
        let mut health = Health::default();
        let changes: Vec<bool> = "xx.xxx.x...".chars().map(|c| health.record(c == '.')).collect();
        assert_eq!(changes, [false, false, false, false, false, true, false, false, false, false, true]);
        assert!(health.is_up());
    }
}
