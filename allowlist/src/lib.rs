//! The domain of OutputGuard, without I/O: what people may ask for, what follows from it, and how it travels.
//!
//! Map, in the order a write passes through:
//! [`target`] and [`ports`] parse what a person typed, [`class`] refuses addresses that are not globally
//! reachable, [`entry`] is what a person added (its [`texts`] take little room; [`linger`] is a label among them), [`element`] is one prefix with ports as a gateway enforces it,
//! [`published`] is the reference-counted set of elements, [`change`] is one step of it, [`digest`] proves that
//! two sides hold the same set, [`feed`] frames it for the way to a gateway, [`codec`] puts frames into bytes.
//!
//! This crate depends on neither tokio, sled nor openraft, so that gateways and tools can use it freely.

pub mod change;
pub mod class;
pub mod codec;
pub mod digest;
mod domain;
pub mod element;
pub mod entry;
pub mod feed;
pub mod linger;
pub mod ports;
pub mod published;
pub mod target;
pub mod texts;

pub use change::{Change, Revision};
pub use class::{AddressClass, Refusal, SpecialRange};
pub use digest::Digest;
pub use element::Element;
pub use entry::{Entry, EntryId};
pub use ports::{PortRange, Ports, Protocol};
pub use published::Published;
pub use target::{DomainName, Target, TargetError};
pub use texts::{Labels, SharedText};
