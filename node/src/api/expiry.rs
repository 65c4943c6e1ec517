//! The time at which an entry ends by itself, as people write it.

use serde::{Deserialize, Deserializer};

use super::entries::now_ms;
use super::entry_view::unix_ms;
use super::problem::{Code, Problem};

/// Parses a time that has to come yet, RFC 3339; gives Unix milliseconds.
pub(super) fn parse(text: &str) -> Result<u64, Problem> {
    let wrong = |what: String| Problem::new(Code::InvalidExpiry, what);
    let shown: String = text.chars().take(64).collect();
    let at_ms = unix_ms(text).ok_or_else(|| {
        wrong(format!(
            "expires_at `{shown}` is not a time; write it as RFC 3339, such as 2030-01-31T18:00:00Z"
        ))
    })?;
    if at_ms <= now_ms() {
        return Err(wrong(format!("expires_at `{shown}` is over; give a time that has to come yet")));
    }
    Ok(at_ms)
}

/// A protected entry stays until nobody needs it: there is no way to end it, hence no time for that either.
pub(super) fn of_protected() -> Problem {
    let detail = "a protected entry cannot end by itself; leave out either `protected` or `expires_at`";
    Problem::new(Code::InvalidExpiry, detail)
}

/// Tells `"expires_at": null` from a field that was left out.
pub(super) fn given<'de, D: Deserializer<'de>>(field: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(field).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_has_to_come_is_taken_in_any_zone_and_everything_else_refused_with_a_reason() {
        assert_eq!(parse("2286-11-20T18:46:40+01:00").unwrap(), parse("2286-11-20T17:46:40Z").unwrap());
        for (text, reason) in [
            ("tomorrow", "write it as RFC 3339"),
            ("2030-01-31", "write it as RFC 3339"),
            ("1999-12-31T23:59:59Z", "is over"),
            ("0001-01-01T00:00:00Z", "is over"),
        ] {
            let problem = parse(text).unwrap_err();
            assert!(problem.detail().contains(reason), "{text}: {}", problem.detail());
        }
    }
}
