//! `tunnel`: reach the Ollama on your own desktop from anywhere, through a relay you host yourself.
//!
//! Reading order: [`transport`] says what an exchange is and carries it; [`relay`] takes callers' requests and hands them to
//! the bridges that are connected; [`bridge`] answers them from the local server; [`cmd`] turns arguments into settings and
//! runs one of them. Imports go one way: `main → cmd → {relay, bridge} → transport`.

pub mod bridge;
pub mod cmd;
pub mod demo;
pub mod files;
pub mod platform;
pub mod random;
pub mod relay;
pub mod shutdown;
pub mod telemetry;
pub mod token;
pub mod transport;
