//! When an entry ends: a time, or a while from now.

use std::str::FromStr;

use anyhow::{Context, bail};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

/// As typed: `90m`, `12h`, `30d`, `2w`, or RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ends {
    /// So long after it is asked for.
    In(Duration),
    /// At that time.
    At(OffsetDateTime),
}

impl Ends {
    /// As the server takes it.
    pub(crate) fn text(&self, now: OffsetDateTime) -> anyhow::Result<String> {
        let at = match self {
            Self::In(wait) => now.checked_add(*wait).context("--expires is too far away")?,
            Self::At(time) => *time,
        };
        at.format(&Rfc3339).context("--expires is too far away")
    }
}

impl FromStr for Ends {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
            return Ok(Self::At(time));
        }
        let unit = text.chars().last().unwrap_or_default();
        let amount: i64 = match text.strip_suffix(unit).unwrap_or_default().parse() {
            Ok(amount) if amount > 0 => amount,
            _ => bail!("write a while such as 90m, 12h, 30d or 2w, or a time such as 2030-01-31T18:00:00Z"),
        };
        let seconds = match unit {
            'm' => 60,
            'h' => 3_600,
            'd' => 24 * 3_600,
            'w' => 7 * 24 * 3_600,
            _ => bail!("`{unit}` is no unit of time; write m, h, d or w, such as 30d"),
        };
        let seconds = amount.checked_mul(seconds).context("that is too far away")?;
        Ok(Self::In(Duration::seconds(seconds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_while_and_a_time_are_taken_and_everything_else_refused_with_the_right_way() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let text = |typed: &str| typed.parse::<Ends>().unwrap().text(now).unwrap();
        assert_eq!(text("90m"), "1970-01-01T01:30:00Z");
        assert_eq!(text("2w"), "1970-01-15T00:00:00Z");
        assert_eq!(text("2030-01-31T18:00:00+01:00"), "2030-01-31T18:00:00+01:00");
        for (typed, reason) in
            [("", "such as"), ("d", "such as"), ("-3d", "such as"), ("3", "such as"), ("3y", "no unit")]
        {
            let error = typed.parse::<Ends>().unwrap_err().to_string();
            assert!(error.contains(reason), "{typed}: {error}");
        }
        assert!("9223372036854775807w".parse::<Ends>().is_err());
        assert!("900000000000d".parse::<Ends>().unwrap().text(now).is_err());
    }
}
