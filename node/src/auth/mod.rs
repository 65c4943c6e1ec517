//! Who may do what. [`token`] is the text people and machines show and its hash in the replicated state, [`secret`]
//! keeps such texts out of logs, [`caller`] turns a request into a name with a role, [`same_origin`] keeps other web
//! sites from using a browser's cookie.

pub mod caller;
pub mod same_origin;
pub mod secret;
pub mod token;

pub use caller::{Admin, Caller, Editor, EntryEditor, FeedClient, LocalAdmin, Viewer};
pub use secret::Secret;
