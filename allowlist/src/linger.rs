//! How long an entry wants the addresses of its domain kept after DNS last gave them: a label, since it is a wish that any
//! release may carry and only the resolver has to understand.

use std::collections::BTreeMap;
use std::time::Duration;

/// The label that carries it, such as `30m`.
pub const LINGER_LABEL: &str = "outputguard/linger";
/// Longer ones are taken for a slip: what left DNS would stay open for ever.
pub const MAX_LINGER: Duration = Duration::from_hours(7 * 24);

/// A wish that cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("label {LINGER_LABEL} is `{0}`; write a time such as 90s, 30m, 12h or 7d, at most 7d")]
pub struct LingerError(pub String);

/// The wish among `labels`, if there is one.
///
/// # Errors
/// [`LingerError`] when it is no time, or above [`MAX_LINGER`].
pub fn of_labels(labels: &BTreeMap<String, String>) -> Result<Option<Duration>, LingerError> {
    labels.get(LINGER_LABEL).map(|text| parse(text)).transpose()
}

/// Reads a time such as `90s`, `30m`, `12h` or `7d`.
///
/// # Errors
/// As [`of_labels`].
pub fn parse(text: &str) -> Result<Duration, LingerError> {
    let wrong = || LingerError(text.chars().take(20).collect());
    let unit_s = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3_600,
        Some('d') => 86_400,
        _ => return Err(wrong()),
    };
    // Every unit is one byte.
    let amount = text.get(..text.len() - 1).unwrap_or_default();
    if !amount.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let seconds =
        amount.parse::<u64>().ok().and_then(|amount| amount.checked_mul(unit_s)).ok_or_else(wrong)?;
    let linger = Duration::from_secs(seconds);
    if linger > MAX_LINGER { Err(wrong()) } else { Ok(linger) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linger_time_is_a_number_with_a_unit_and_a_week_at_most() {
        for (text, seconds) in [("0s", 0), ("90s", 90), ("30m", 1_800), ("12h", 43_200), ("7d", 604_800)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for wrong in
            ["", "m", "30", "-1m", "+1m", "1.5h", "30min", "8d", "1w", "30 m", "ü", "99999999999999999999d"]
        {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains("30m, 12h or 7d"), "{wrong}: {error}");
        }
        let labels = BTreeMap::from([(LINGER_LABEL.to_owned(), "30m".to_owned())]);
        assert_eq!(of_labels(&labels), Ok(Some(Duration::from_secs(1_800))));
        assert_eq!(of_labels(&BTreeMap::new()), Ok(None));
    }
}
