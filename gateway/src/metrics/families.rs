//! Making a family of metrics and showing it.

use prometheus::Registry;
use prometheus::core::Collector;

/// A family that is shown from now on.
///
/// # Errors
/// It could not be made, or its name is taken.
pub(crate) fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    made: Result<C, prometheus::Error>,
) -> Result<C, prometheus::Error> {
    let family = made?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}
