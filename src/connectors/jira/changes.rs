//! The issues that changed, oldest change first, while they go on changing.
//!
//! No question counts on places in a list, because an issue that changes leaves its place and moves the others. Each
//! asks for what changed since the newest change that was seen, and what came before is left out. A minute that holds
//! more than JIRA answers at once is read by key, and then sorted: an issue that changes meanwhile leaves that minute
//! for one that is asked for later. Where the user's clock comes by an hour twice, that hour is such a minute.

use super::discovery::Discovery;
use super::jql::{Column, Is, Jql};
use super::settings::TicketField;
use super::wire::Issue;
use super::{Jira, issue};
use crate::connectors::ticket_engine::{RemoteTicket, TicketError};
use chrono::{DateTime, Utc};
use futures_util::stream::{self, BoxStream};
use serde_json::Value;
use std::collections::{HashMap, HashSet, VecDeque};

/// Before the time that was asked for, because a search may learn of a change later than of one that came after it, and
/// the clocks of the nodes of a JIRA differ.
const OVERLAP: chrono::Duration = chrono::Duration::minutes(2);
const UPDATED: Column = Column::Word("updated");
const KEY: Column = Column::Word("key");

/// See [`crate::connectors::ticket_engine::TicketEngine::updated_since`].
pub(super) fn stream<'a>(
    jira: &'a Jira,
    organization: &'a str,
    since: Option<DateTime<Utc>>,
) -> BoxStream<'a, Result<RemoteTicket, TicketError>> {
    let reader = Reader {
        jira,
        organization,
        since,
        from: None,
        begun: None,
        is_over: false,
        ready: VecDeque::new(),
        seen: HashMap::new(),
        broken: HashSet::new(),
    };
    Box::pin(stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        loop {
            if let Some(item) = reader.ready.pop_front() {
                return Some((item, Some(reader)));
            }
            if reader.is_over {
                return None;
            }
            if let Err(error) = reader.fill().await {
                return Some((Err(error), None));
            }
        }
    }))
}

struct Reader<'a> {
    jira: &'a Jira,
    organization: &'a str,
    since: Option<DateTime<Utc>>,
    /// The minute that is asked for next; `None`: from the beginning.
    from: Option<DateTime<Utc>>,
    /// What JIRA's clock said at first. What changes later is for the next time: there would be no end of it.
    begun: Option<DateTime<Utc>>,
    is_over: bool,
    ready: VecDeque<Result<RemoteTicket, TicketError>>,
    /// Those that may come again, and when they had changed.
    seen: HashMap<String, DateTime<Utc>>,
    /// Those that made no sense.
    broken: HashSet<String>,
}

impl Reader<'_> {
    async fn fill(&mut self) -> Result<(), TicketError> {
        let (discovery, zone) = (self.jira.discovery().await?, self.jira.zone().await?);
        if let Some(since) = self.since.take() {
            self.from = Some(zone.at_or_before(since - OVERLAP));
        }
        let mut jql = self.everything(discovery);
        if let Some(from) = self.from {
            jql = jql.and(&UPDATED, Is::AtLeast, &zone.text(from));
        }
        let fields = issue::read_fields(discovery);
        let found = self.jira.rest.search(&jql.order_by("updated ASC, key ASC"), &fields).await?;
        let begun = *self.begun.get_or_insert(found.clock);
        let tickets = self.read(found.issues, discovery);
        let newest = tickets.iter().flatten().map(|(ticket, _)| ticket.updated).max();
        self.hand_on(tickets);
        if found.is_all {
            self.is_over = true;
            return Ok(());
        }
        let Some(newest) = newest else {
            let problem = "JIRA sends a page of issues of which none says when it changed".to_owned();
            return Err(TicketError::Answer { problem, passing: false });
        };
        let mut next = zone.at_or_before(newest);
        if let Some(from) = self.from.filter(|from| next <= *from) {
            next = zone.after(newest);
            self.crowd(from, next, discovery).await?;
        }
        self.from = Some(next);
        self.seen.retain(|_, updated| *updated >= next);
        self.is_over = next > begun;
        Ok(())
    }

    /// All that changed from one minute to another, however many they are.
    async fn crowd(
        &mut self,
        from: DateTime<Utc>,
        to: DateTime<Utc>,
        discovery: &Discovery,
    ) -> Result<(), TicketError> {
        let zone = self.jira.zone().await?;
        let span = self
            .everything(discovery)
            .and(&UPDATED, Is::AtLeast, &zone.text(from))
            .and(&UPDATED, Is::Below, &zone.text(to))
            .order_by("key ASC");
        let fields = issue::read_fields(discovery);
        let (mut all, mut last, mut keys) = (Vec::new(), None::<String>, HashSet::new());
        loop {
            let jql = last.iter().fold(span.clone(), |jql, last| jql.and(&KEY, Is::Above, last));
            let found = self.jira.rest.search(&jql, &fields).await.map_err(|error| match error {
                // JIRA knows no order of keys for one that was deleted meanwhile. Later it is not asked for again.
                TicketError::Answer { problem, .. } if last.is_some() => {
                    TicketError::Answer { problem, passing: true }
                }
                other => other,
            })?;
            last = found.issues.last().and_then(key_of).map(str::to_owned);
            all.extend(self.read(found.issues, discovery));
            if found.is_all {
                break;
            }
            // Without a new last key the next question would be the same.
            if !last.as_ref().is_some_and(|last| keys.insert(last.clone())) {
                let problem = "JIRA sends the same issues again and again".to_owned();
                return Err(TicketError::Answer { problem, passing: false });
            }
        }
        all.sort_by_key(|read| read.as_ref().map_or(DateTime::<Utc>::MIN_UTC, |(ticket, _)| ticket.updated));
        self.hand_on(all);
        Ok(())
    }

    fn everything(&self, discovery: &Discovery) -> Jql {
        let jql = Jql::project(&self.jira.settings.project);
        match discovery.field(TicketField::Organization) {
            Some(field) => {
                let is = if field.is_text() { Is::Holding } else { Is::Equal };
                jql.and(&field.column(), is, self.organization)
            }
            None => jql,
        }
    }

    /// Each ticket, and whether it belongs to the organization.
    fn read(
        &self,
        issues: Vec<Value>,
        discovery: &Discovery,
    ) -> Vec<Result<(RemoteTicket, bool), TicketError>> {
        let read = |value: Value| {
            let key = key_of(&value).unwrap_or("an issue without a key").to_owned();
            let ticket =
                serde_json::from_value::<Issue>(value).map_err(|error| error.to_string()).and_then(|issue| {
                    let is_ours = issue::belongs_to(&issue, self.organization, discovery);
                    issue::decode(&issue, &self.jira.settings, discovery).map(|ticket| (ticket, is_ours))
                });
            ticket.map_err(|problem| TicketError::Item { key, problem })
        };
        issues.into_iter().map(read).collect()
    }

    /// What was not handed on before.
    fn hand_on(&mut self, tickets: Vec<Result<(RemoteTicket, bool), TicketError>>) {
        for read in tickets {
            match read {
                Ok((ticket, is_ours)) => {
                    let before = self.seen.insert(ticket.key.clone(), ticket.updated);
                    if is_ours && before != Some(ticket.updated) {
                        self.ready.push_back(Ok(ticket));
                    }
                }
                Err(error) => {
                    if self.broken.insert(error.to_string()) {
                        self.ready.push_back(Err(error));
                    }
                }
            }
        }
    }
}

fn key_of(issue: &Value) -> Option<&str> {
    issue.get("key")?.as_str()
}
