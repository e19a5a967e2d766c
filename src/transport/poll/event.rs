//! What the owner of a `poll` link is told of it.

use crate::transport::attach::ConnectError;

/// What happens on the link that its owner must see to.
#[derive(Debug)]
pub enum Event {
    /// The relay cannot be reached at the moment; it is tried again and again.
    Away(String),
    /// It can again.
    Back,
    /// The relay says which transports it offers, the one it prefers first.
    Steer(Vec<String>),
    /// The relay asks to be left: connect anew, while what is in flight finishes here.
    Drain,
    /// It is over.
    Ended(End),
}

/// Takes what happens; does not wait.
pub type Tell = dyn Fn(Event) + Send + Sync;

/// How the link ended.
#[derive(Debug)]
pub enum End {
    /// The relay has no further use for it.
    Finished,
    /// Another process of the same bridge took over.
    Replaced,
    /// The relay refuses.
    Refused(ConnectError),
}
