//! Talking to PostgreSQL: connecting with deadlines, migrating, listening, and the private server.

pub(crate) mod cluster;
pub mod connect;
pub mod database;
pub mod embedded;
pub mod lifeline;
pub mod listen;
pub mod migrate;
pub mod roles;
