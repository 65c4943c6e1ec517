//! Which gateway carries the traffic of one family.

/// How a gateway stands at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Its host answers probes (or is not probed).
    pub alive: bool,
    /// A network this host is on leads to it.
    pub on_link: bool,
}

/// The gateway to use, by its place in the order of preference: the one in use as long as it works, else the first
/// that works. When none does, the one in use stays, for opening another way helps nobody; with `prefer_first` a
/// better one takes over as soon as it works again.
pub fn choose(in_use: Option<usize>, standings: &[Standing], prefer_first: bool) -> Option<usize> {
    let works = |standing: &Standing| standing.alive && standing.on_link;
    let first = standings.iter().position(works);
    let current = in_use.filter(|&place| place < standings.len());
    match current {
        Some(place) if standings.get(place).is_some_and(works) && !prefer_first => Some(place),
        Some(place) => first.or(Some(place)),
        None => first.or_else(|| standings.iter().position(|standing| standing.on_link)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Standing = Standing { alive: true, on_link: true };
    const DEAD: Standing = Standing { alive: false, on_link: true };
    const AWAY: Standing = Standing { alive: true, on_link: false };

    #[test]
    fn the_first_that_works_is_taken_and_kept() {
        assert_eq!(choose(None, &[GOOD, GOOD], false), Some(0));
        assert_eq!(choose(None, &[AWAY, GOOD], false), Some(1));
        assert_eq!(choose(Some(0), &[DEAD, GOOD], false), Some(1));
        assert_eq!(choose(Some(0), &[AWAY, GOOD], false), Some(1));
        assert_eq!(choose(Some(1), &[GOOD, GOOD], false), Some(1));
        assert_eq!(choose(Some(1), &[GOOD, GOOD], true), Some(0));
    }

    #[test]
    fn when_none_works_nothing_moves() {
        assert_eq!(choose(Some(1), &[DEAD, DEAD], false), Some(1));
        assert_eq!(choose(Some(1), &[DEAD, AWAY], true), Some(1));
        assert_eq!(choose(None, &[AWAY, DEAD], false), Some(1));
        assert_eq!(choose(None, &[AWAY, AWAY], false), None);
        assert_eq!(choose(None, &[], false), None);
    }
}
