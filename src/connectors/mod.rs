//! The outside: what is common to all systems. Connectors know no jobs and no SQL.

mod address;
mod auth;
mod body;
mod call;
pub mod client;
mod error;
pub mod jira;
pub mod net;
pub mod nexpose;
pub mod openscap;
mod paging;
mod prose;
pub mod qualys;
mod retry;
pub mod scanner;
pub mod ticket_engine;
mod tls;
mod transport;

pub use call::{Answer, Call};
pub use client::SourceClient;
pub use error::ClientError;
pub use net::{AddressPolicy, AddressRefused};
pub use paging::{Page, Pages, Paging};
pub use retry::RetryPolicy;
pub use tls::install_crypto;

// The words that calls and answers are made of.
pub use bytes::Bytes;
pub use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
pub use url::Url;
