//! What a ticket system can do, whatever product it is. Each has a folder of its own beside this file; tickets in
//! rosterd's own tables need none.
//!
//! rosterd decides by its own table `Ticket`, which mirrors what an engine has: `updated_since` brings changes in, and
//! what rosterd wants changed is written down (`TicketChange`) before it is carried out here. So an engine needs to find
//! nothing by status or field.

use super::ClientError;
use chrono::{DateTime, NaiveDate, Utc};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

/// A ticket system.
pub trait TicketEngine: Send + Sync {
    /// Makes a ticket that carries `draft.marker`, and returns its key (`SEC-12`).
    fn create<'a>(&'a self, draft: &'a TicketDraft) -> BoxFuture<'a, Result<String, TicketError>>;

    /// The key of the ticket that carries this marker. The search of an engine may not know of a ticket of some seconds
    /// ago yet, so `None` proves nothing at once.
    fn find<'a>(&'a self, marker: &'a str) -> BoxFuture<'a, Result<Option<String>, TicketError>>;

    /// Brings a ticket to a status, by as many steps as its workflow needs, and leaves a comment. A ticket that is there
    /// already gets the comment alone, and none that it has already.
    fn change<'a>(&'a self, key: &'a str, change: &'a TicketUpdate)
    -> BoxFuture<'a, Result<(), TicketError>>;

    /// One ticket as it is now; `None`: there is none.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<RemoteTicket>, TicketError>>;

    /// The tickets of this organization that changed at or after `since`, oldest change first, or all of them. A ticket
    /// that does not make sense is a [`TicketError::Item`] and others follow it; any other error is the last item.
    fn updated_since<'a>(
        &'a self,
        organization: &'a str,
        since: Option<DateTime<Utc>>,
    ) -> BoxStream<'a, Result<RemoteTicket, TicketError>>;
}

/// A ticket to be made. Empty texts are left out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TicketDraft {
    /// Unique, and the same in every attempt: `rosterd-` and the ticket's ID.
    pub marker: String,
    /// `Organization.Code`.
    pub organization: String,
    /// One line, 255 characters at most.
    pub summary: String,
    /// Plain text.
    pub description: String,
    /// What to do, plain text.
    pub solution: String,
    /// `High`, `Critical`: a severity of the organization.
    pub priority: String,
    /// 0 to 10.
    pub cvss: Option<f64>,
    /// The last day for it, in the organization's time zone.
    pub due: Option<NaiveDate>,
    /// When the scanner saw it.
    pub alert_date: Option<DateTime<Utc>>,
    /// Name of the scanner product: the Method of Discovery.
    pub discovered_by: String,
    /// The scanner's group of the device.
    pub group: String,
    /// The scanner's identifier of the device.
    pub asset: String,
    /// Name of the device.
    pub host_name: String,
    /// Its address.
    pub ip: String,
    /// Its network card.
    pub mac: String,
    /// Its operating system in the scanner's words.
    pub os: String,
    /// The same, classified: `OperatingSystemType.Type`.
    pub os_type: String,
    /// `443 tcp`
    pub service_port: String,
    /// The scanner's identifier of the vulnerability.
    pub vulnerability: String,
    /// Its title.
    pub vulnerability_title: String,
    /// CVE identifiers, with commas between.
    pub cve: String,
    /// The vendor's, with commas between.
    pub vendor_references: String,
    /// By the organization's `CategoryRule`.
    pub category: String,
    /// By the organization's `AssignmentRules`.
    pub assignment_group: String,
    /// A user of the engine.
    pub assignee: String,
    /// By the organization's `AssignmentRules`.
    pub application: String,
}

/// What shall become of a ticket.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TicketUpdate {
    /// Unique, and the same in every attempt, so that a comment is not left twice.
    pub marker: String,
    /// One of the statuses of rosterd (`Ticket.Status`); `None` leaves it.
    pub status: Option<String>,
    /// Plain text; empty: none.
    pub comment: String,
    /// Whether nobody is assigned any more.
    pub clear_assignee: bool,
    /// When it was looked at last.
    pub last_checked: Option<DateTime<Utc>>,
}

/// A ticket as an engine has it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RemoteTicket {
    /// `SEC-12`
    pub key: String,
    /// The marker it was made with, if it was rosterd that made it.
    pub marker: Option<String>,
    /// One of the statuses of rosterd, or the engine's own word where none is mapped to it.
    pub status: String,
    /// Who it is assigned to.
    pub assignee: Option<String>,
    /// `Ticket.AssignmentGroup`.
    pub assignment_group: Option<String>,
    /// The last day for it.
    pub due: Option<NaiveDate>,
    /// When it was resolved.
    pub resolved: Option<DateTime<Utc>>,
    /// The number of the approved exception (CERF).
    pub exception: Option<String>,
    /// When the exception ends.
    pub exception_expires: Option<DateTime<Utc>>,
    /// When it changed last, by the engine's clock.
    pub updated: DateTime<Utc>,
    /// The scanner's identifiers it was made with, for tickets that rosterd did not make: device, vulnerability, port
    /// (`443 tcp`).
    pub asset: Option<String>,
    /// See `asset`.
    pub vulnerability: Option<String>,
    /// See `asset`.
    pub service_port: Option<String>,
}

/// Why a ticket system did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// A call got no answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The source or its Payload does not make sense.
    #[error("source {name}: {problem}")]
    Source {
        /// `SourceConfig.Source` and ID.
        name: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The workflow of the engine does not allow it. Trying again does not help until somebody changes the workflow, the
    /// maps in Payload or the ticket.
    #[error("{key}: {problem}")]
    Workflow {
        /// The ticket.
        key: String,
        /// What the workflow lacks.
        problem: String,
    },
    /// One ticket does not make sense; the others are not touched by it.
    #[error("{key}: {problem}")]
    Item {
        /// The ticket.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It refused, or answered what does not make sense.
    #[error("{problem}")]
    Answer {
        /// What it said.
        problem: String,
        /// Whether another attempt may succeed.
        passing: bool,
    },
}

impl TicketError {
    /// Whether another attempt may succeed.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Client(error) => error.is_passing(),
            Self::Answer { passing, .. } => *passing,
            Self::Source { .. } | Self::Workflow { .. } | Self::Item { .. } => false,
        }
    }
}
