//! What every list that comes in pages asks of its query.

use std::str::FromStr;

use super::problem::{Code, Problem};

/// How many of a list a client wants on a page, 1 to `most`.
pub(super) fn limit(asked: Option<usize>, default: usize, most: usize) -> Result<usize, Problem> {
    let limit = asked.unwrap_or(default);
    if !(1..=most).contains(&limit) {
        return Err(Problem::new(Code::InvalidQuery, format!("limit is {limit}; it goes from 1 to {most}")));
    }
    Ok(limit)
}

/// Where the page before ended; `None` for the first page.
pub(super) fn cursor<T: FromStr>(asked: Option<&str>) -> Result<Option<T>, Problem> {
    let wrong = |_| {
        let detail = "give the `next_cursor` of the page before as it is, or leave cursor out to begin";
        Problem::new(Code::InvalidCursor, detail)
    };
    asked.map(|cursor| cursor.parse().map_err(wrong)).transpose()
}
