//! The chaos run: real servers, clients on all of them at once, faults all the time, and a proof afterwards that every
//! answer was true.
//!
//! ```text
//!  crowd ─ once ─ caller ─▶ API of each server      nemesis ── fault ──▶ ground (disk, clock, cables, processes)
//!    │ history                                     │ log, counts
//!    ▼                                             ▼
//!  projection ──▶ linearize (one key) ──▶ witness ──▶ verdict ◀── revisions (across keys), lost writes, agreement
//! ```
//!
//! Half of the writes go under an idempotency key and are sent again until they are answered (`once`); backups are taken all
//! the while, and one of them is put into a new cluster and read there (`archive`, `last`).
//!
//! - [`run()`] does all of it; [`Options`] choose length, seed and faults.
//! - [`linearize`] is the checker, [`history`] what it checks.
//!
//! The same seed draws the same faults and the same calls; how they interleave is the machine's affair.

mod archive;
mod caller;
mod clock;
mod crowd;
mod disk;
mod fault;
mod ground;
pub mod history;
mod last;
pub mod linearize;
mod nemesis;
mod once;
mod projection;
mod revisions;
mod run;
mod tally;
mod verdict;
mod witness;

pub use caller::{Keys, Reads};
pub use fault::Fault;
pub use ground::Syncs;
pub use run::{Options, Plan, Summary, run};
pub use tally::{Keyed, Kind, Outcome, Tally};
pub use verdict::{Violation, ViolationKind};
