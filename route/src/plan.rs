//! The steps from what the kernel holds to what it should hold, in an order that never opens a way past the gateway.

use std::fmt;

use crate::desired::{Desired, RouteKey, RouteKind, Rule, route_text, table_text};

/// What the kernel holds, as far as it concerns us.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// Routes with our protocol number in any table, and all routes in our table.
    pub routes: Vec<HeldRoute>,
    /// Rules with our protocol number.
    pub rules: Vec<Rule>,
    /// Rules of others that say exactly what a rule of ours could.
    pub foreign_rules: Vec<Rule>,
}

/// A route found in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldRoute {
    /// Its name.
    pub key: RouteKey,
    /// What it does; `None` for something we never set.
    pub kind: Option<RouteKind>,
    /// Who set it (`rtm_protocol`).
    pub protocol: u8,
    /// Its type of service; we set 0 only.
    pub tos: u8,
    /// Its kind in the kernel's numbers (`rtm_type`).
    pub rtm_type: u8,
}

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A route where none is.
    AddRoute(RouteKey, RouteKind),
    /// A route in the place of another one, in one move.
    ReplaceRoute(RouteKey, RouteKind),
    /// Away with a route.
    RemoveRoute(HeldRoute),
    /// A rule more.
    AddRule(Rule),
    /// A rule less.
    RemoveRule(Rule),
}

/// The steps that make `held` into `desired`: first the routes that close the way, then those that open it to the
/// gateway, then the rules that lead there; what is too much goes last, rules before the routes they lead to.
pub fn steps(desired: &Desired, held: &Held) -> Vec<Step> {
    let mut routes: Vec<(RouteKind, Step)> = Vec::new();
    for (key, kind) in &desired.routes {
        match held.routes.iter().find(|route| route.key == *key && route.tos == 0) {
            Some(route) if route.kind == Some(*kind) && route.is_ours() => {}
            Some(_) => routes.push((*kind, Step::ReplaceRoute(*key, *kind))),
            None => routes.push((*kind, Step::AddRoute(*key, *kind))),
        }
    }
    // `RouteKind` is ordered by how much it opens.
    routes.sort_by_key(|(kind, _)| *kind);
    let mut steps: Vec<Step> = routes.into_iter().map(|(_, step)| step).collect();
    let there = |rule: &&Rule| !held.rules.contains(rule) && !held.foreign_rules.contains(rule);
    steps.extend(desired.rules.iter().filter(there).map(|rule| Step::AddRule(*rule)));
    steps.extend(removal(
        held,
        |rule| desired.rules.contains(rule),
        |route| route.tos == 0 && desired.routes.contains_key(&route.key),
    ));
    steps
}

/// The steps that leave nothing of ours.
pub fn cleanup_steps(held: &Held) -> Vec<Step> {
    removal(held, |_| false, |route| !route.is_ours())
}

fn removal(
    held: &Held,
    keep_rule: impl Fn(&Rule) -> bool,
    keep_route: impl Fn(&HeldRoute) -> bool,
) -> Vec<Step> {
    let mut rules: Vec<Rule> = held.rules.iter().copied().filter(|rule| !keep_rule(rule)).collect();
    // The last rule is the one that leads to our table.
    rules.sort_unstable_by_key(|rule| std::cmp::Reverse(*rule));
    // A rule that stands twice must go once for each time, and one that is wanted may stand once only.
    let mut seen = Vec::new();
    for rule in held.rules.iter().filter(|rule| keep_rule(rule)) {
        if seen.contains(rule) {
            rules.push(*rule);
        }
        seen.push(*rule);
    }
    let routes = held.routes.iter().copied().filter(|route| !keep_route(route));
    rules.into_iter().map(Step::RemoveRule).chain(routes.map(Step::RemoveRoute)).collect()
}

impl HeldRoute {
    /// True when we set it.
    pub fn is_ours(&self) -> bool {
        self.protocol == crate::desired::PROTOCOL
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = |index: u32| format!("#{index}");
        match self {
            Self::AddRoute(key, kind) => {
                write!(f, "add route {} to table {}", route_text(key, kind, &device), table_text(key.table))
            }
            Self::ReplaceRoute(key, kind) => {
                write!(
                    f,
                    "replace route {} in table {}",
                    route_text(key, kind, &device),
                    table_text(key.table)
                )
            }
            Self::RemoveRoute(route) => {
                let RouteKey { table, prefix, metric } = route.key;
                write!(f, "remove route {prefix} metric {metric} from table {}", table_text(table))
            }
            Self::AddRule(rule) => write!(f, "add rule {rule}"),
            Self::RemoveRule(rule) => write!(f, "remove rule {rule}"),
        }
    }
}
