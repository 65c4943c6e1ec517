//! Doors to what reads the listings of iptables.

use super::{leads_only_by, leads_to, rules_of};
use crate::firewall::layout::Family;
use crate::firewall::rules::Chain;

/// Longest comment that xt_comment takes, its NUL included.
const MAX_COMMENT_BYTES: usize = 256;

/// A listing as `iptables -S` prints it; and, since much else decides what a rule does, the same text as the comment of a
/// rule of somebody else.
pub fn iptables(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for chain in Chain::BOTH {
        for family in Family::BOTH {
            let wanted = chain.jumps(family, &[]);
            let present = rules_of(&text, chain.parent());
            if leads_only_by(&wanted, &present, chain) {
                let ours = present.iter().filter(|rule| leads_to(rule, chain)).count();
                assert!(present.starts_with(&wanted) && ours == wanted.len(), "{present:?}");
            }
        }
        let comment: String = text.chars().filter(|c| !c.is_control()).collect();
        if comment.len() < MAX_COMMENT_BYTES {
            let comment = as_printed(&comment);
            let rule = |target: &str| format!("-s 10.0.0.0/8 -m comment --comment {comment} -j {target}");
            assert!(!leads_to(&rule("ACCEPT"), chain), "somebody else's: {}", rule("ACCEPT"));
            assert!(leads_to(&rule(chain.name()), chain), "not seen as ours: {}", rule(chain.name()));
        }
    }
}

/// As `xtables_save_string` of libxtables prints a string.
fn as_printed(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let mut printed = String::from('"');
    for c in text.chars() {
        if "\"\\'".contains(c) {
            printed.push('\\');
        }
        printed.push(c);
    }
    printed.push('"');
    printed
}
