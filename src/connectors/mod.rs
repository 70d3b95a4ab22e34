//! The outside: what is common to all systems. Connectors know no jobs and no SQL.

mod address;
pub mod client;
pub mod net;
mod transport;

pub use client::{Answer, Call, ClientError, SourceClient};
pub use net::{AddressPolicy, AddressRefused};
