//! The span of a job, and whose it is.

use std::fmt::{self, Display};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Span, Subscriber};
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::registry::LookupSpan;
use uuid::Uuid;

/// The name of the span in which the engine runs a job.
pub const JOB_SPAN: &str = "job";

/// The span in which a job runs: `struct_name` and `org` as people write them, `id` of the
/// `JobHistory` row. It is made at level INFO and is seen whatever the configured level is.
pub fn job_span(struct_name: impl Display, org: impl Display, id: Uuid) -> Span {
    tracing::info_span!(JOB_SPAN, "struct" = %struct_name, org = %org, id = %id)
}

/// Whose line it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobIdentity {
    /// The registered name, `TicketingJob`.
    pub struct_name: String,
    /// The code of the organization.
    pub org: String,
    /// The `JobHistory` row, as text.
    pub id: String,
}

impl Visit for JobIdentity {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let part = match field.name() {
            "struct" => &mut self.struct_name,
            "org" => &mut self.org,
            "id" => &mut self.id,
            _ => return,
        };
        *part = super::event::escape(&format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

pub(super) fn is_job(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.name() == JOB_SPAN && metadata.fields().field("struct").is_some()
}

/// Keeps the identity with a new job span; several layers may do so, it is kept once.
pub(super) fn remember<S>(attributes: &Attributes<'_>, id: &Id, context: &Context<'_, S>)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    if !is_job(attributes.metadata()) {
        return;
    }
    if let Some(span) = context.span(id) {
        let mut extensions = span.extensions_mut();
        if extensions.get_mut::<JobIdentity>().is_none() {
            let mut identity = JobIdentity::default();
            attributes.record(&mut identity);
            extensions.insert(identity);
        }
    }
}

/// Calls `then` with the identity of the job in whose span the event stands, if it stands in one.
pub(super) fn with_job_of<S, T>(
    event: &Event<'_>,
    context: &Context<'_, S>,
    then: impl FnOnce(Option<&JobIdentity>) -> T,
) -> T
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let job = context.event_scope(event).and_then(|mut scope| scope.find(|span| is_job(span.metadata())));
    match job {
        Some(span) => then(span.extensions().get::<JobIdentity>()),
        None => then(None),
    }
}

/// A filter that also lets job spans through: an event at a level that is written must know its job,
/// even where the level would hide the span itself ("warn" hides spans at INFO).
#[derive(Debug)]
pub(super) struct OrJobSpans<F>(pub(super) F);

impl<S: Subscriber, F: Filter<S>> Filter<S> for OrJobSpans<F> {
    fn enabled(&self, metadata: &Metadata<'_>, context: &Context<'_, S>) -> bool {
        is_job(metadata) || self.0.enabled(metadata, context)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        // Asked first, because EnvFilter learns here which spans its directives mean.
        let interest = self.0.callsite_enabled(metadata);
        if is_job(metadata) { Interest::always() } else { interest }
    }

    fn event_enabled(&self, event: &Event<'_>, context: &Context<'_, S>) -> bool {
        self.0.event_enabled(event, context)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        // Below INFO, tracing would not even make the job's span.
        self.0.max_level_hint().map(|level| level.max(LevelFilter::INFO))
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.0.on_new_span(attributes, id, context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        self.0.on_record(id, values, context);
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        self.0.on_enter(id, context);
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        self.0.on_exit(id, context);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        self.0.on_close(id, context);
    }
}
