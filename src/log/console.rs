//! Lines for people (`classic`) and for programs (`json`), on stdout.
//!
//! A line is written with one call and without a queue, so that none is lost when the process ends.

use std::fmt::Write as _;
use std::io::Write as _;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::event::{LogType, Said, escape};
use super::job::{self, JobIdentity};
use crate::vitals::LOG_LINES_UNWRITTEN;

/// How a line is written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    Classic,
    Json,
}

/// Writes each event as one line.
#[derive(Debug)]
pub(super) struct ConsoleLayer<W> {
    form: Form,
    writer: W,
}

impl<W> ConsoleLayer<W> {
    pub(super) fn new(form: Form, writer: W) -> Self {
        Self { form, writer }
    }
}

impl<S, W> Layer<S> for ConsoleLayer<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        job::remember(attributes, id, &context);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let said = Said::by(event);
        let (now, level, target) = (Utc::now(), *event.metadata().level(), event.metadata().target());
        let mut line = job::with_job_of(event, &context, |job| match self.form {
            Form::Classic => classic(now, level.into(), job, &said),
            Form::Json => json(now, level, target, job, &said),
        });
        line.push('\n');
        // A stdout that is gone or full must end nothing; the line is lost, and counted.
        if self.writer.make_writer_for(event.metadata()).write_all(line.as_bytes()).is_err() {
            metrics::counter!(LOG_LINES_UNWRITTEN).increment(1);
        }
    }
}

/// `2020-04-21 17:18:30 | [INFO] [TicketingJob:NORTON:<JobHistory ID>] - Ticket created key=value`, in UTC.
fn classic(now: DateTime<Utc>, log_type: LogType, job: Option<&JobIdentity>, said: &Said) -> String {
    let mut line = format!("{} | [{}]", now.format("%Y-%m-%d %H:%M:%S"), log_type.name());
    if let Some(JobIdentity { struct_name, org, id }) = job {
        // A String takes every write.
        let _ = write!(line, " [{struct_name}:{org}:{id}]");
    }
    line.push_str(" - ");
    line.push_str(&said.text(None));
    line
}

/// One object; the levels are those of tracing (ERROR, WARN, INFO, DEBUG, TRACE), which log collectors know.
fn json(now: DateTime<Utc>, level: Level, target: &str, job: Option<&JobIdentity>, said: &Said) -> String {
    let mut object = Map::new();
    object.insert("timestamp".to_owned(), now.to_rfc3339_opts(SecondsFormat::Micros, true).into());
    object.insert("level".to_owned(), level.as_str().into());
    object.insert("message".to_owned(), escape(&said.message).into());
    object.insert("target".to_owned(), target.into());
    let fields = said.fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    object.insert("fields".to_owned(), Value::Object(fields.collect()));
    if let Some(JobIdentity { struct_name, org, id }) = job {
        object.insert("job".to_owned(), json!({ "struct": struct_name, "org": org, "id": id }));
    }
    Value::Object(object).to_string()
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use chrono::TimeZone;
    use tracing::{debug, error, info, warn};
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::layer::SubscriberExt;
    use uuid::Uuid;

    use super::super::MAX_LINE_BYTES;
    use super::super::job::{OrJobSpans, job_span};
    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written while `work` runs.
    fn written(form: Form, level: &str, work: impl FnOnce()) -> String {
        let paper = Paper::default();
        let pen = paper.clone();
        let layer =
            ConsoleLayer::new(form, move || pen.clone()).with_filter(OrJobSpans(EnvFilter::new(level)));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
        String::from_utf8(paper.0.lock().unwrap().clone()).unwrap()
    }

    /// Without the 19 letters of the time.
    fn after_time(line: &str) -> &str {
        &line[19..]
    }

    const ID: Uuid = Uuid::from_u128(0xAAAA_AAAA_AAAA_AAAA_AAAA_AAAA_AAAA_AAAA);

    #[test]
    fn the_line_of_the_seed_is_written_to_the_letter() {
        let now = Utc.with_ymd_and_hms(2020, 4, 21, 17, 18, 30).unwrap();
        let job = JobIdentity {
            struct_name: "TicketingJob".to_owned(),
            org: "NORTON".to_owned(),
            id: "AAAAAAA-AAAA-AAAA-AAAA-AAAAAAAAAA".to_owned(),
        };
        let said = Said { message: "Ticket created for vulnerability".to_owned(), ..Said::default() };
        assert_eq!(
            classic(now, LogType::Info, Some(&job), &said),
            "2020-04-21 17:18:30 | [INFO] [TicketingJob:NORTON:AAAAAAA-AAAA-AAAA-AAAA-AAAAAAAAAA] - \
             Ticket created for vulnerability"
        );
    }

    #[test]
    fn a_line_inside_a_job_names_it_also_from_an_inner_span() {
        let text = written(Form::Classic, "info", || {
            job_span("TicketingJob", "NORTON", ID).in_scope(|| {
                tracing::info_span!("page", number = 3).in_scope(|| info!(count = 2, "Ticket created"));
            });
        });
        assert_eq!(
            after_time(&text),
            " | [INFO] [TicketingJob:NORTON:aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa] - Ticket created count=2\n"
        );
    }

    #[test]
    fn a_line_outside_a_job_names_none() {
        let text =
            written(Form::Classic, "info", || info!("Job Runner: Sleeping for 60 seconds - [12 tasks]"));
        assert_eq!(after_time(&text), " | [INFO] - Job Runner: Sleeping for 60 seconds - [12 tasks]\n");
    }

    #[test]
    fn a_level_that_hides_spans_does_not_hide_the_job() {
        let text = written(Form::Classic, "error", || {
            job_span("A", "B", ID).in_scope(|| {
                info!("hidden");
                error!("shown");
            });
        });
        assert_eq!(after_time(&text), " | [ERR] [A:B:aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa] - shown\n");
    }

    #[test]
    fn the_names_of_the_levels_are_those_of_logtype() {
        let text = written(Form::Classic, "trace", || {
            error!("a");
            warn!("a");
            info!("a");
            debug!("a");
            tracing::trace!("a");
        });
        let names: Vec<&str> = text.lines().map(|line| &line[22..29]).collect();
        assert_eq!(names, ["[ERR] -", "[WARN] ", "[INFO] ", "[DBUG] ", "[DBUG] "]);
    }

    #[test]
    fn nobody_can_forge_a_line() {
        let evil = "x\r\n2020-04-21 17:18:30 | [INFO] - fine\u{1b}[2K\u{202e}\u{85}\u{2028}\0";
        let text = written(Form::Classic, "info", || {
            job_span("A\nB", evil, ID).in_scope(|| info!(field = evil, shown = %evil, "{evil}"));
        });
        assert_eq!(text.lines().count(), 1);
        let strange = |letter: char| letter.is_control() || matches!(letter, '\u{202e}' | '\u{2028}');
        assert!(!text.trim_end_matches('\n').contains(strange), "{text:?}");
        assert!(text.contains(" - x\\r\\n2020-04-21 17:18:30 | [INFO] - fine\\u{1b}[2K\\u{202e}"), "{text}");
    }

    #[test]
    fn a_value_with_spaces_is_quoted() {
        let text = written(
            Form::Classic,
            "info",
            || info!(a = "x y", b = %"p=q", c = ?"already quoted", d = "", "m"),
        );
        assert_eq!(after_time(&text), " | [INFO] - m a=\"x y\" b=\"p=q\" c=\"already quoted\" d=\"\"\n");
    }

    #[test]
    fn an_error_is_written_with_its_sources() {
        let inner = io::Error::other("no route");
        let outer = super::super::LogError::NoJournal(inner);
        let text = written(Form::Json, "info", || {
            warn!(error = &outer as &(dyn std::error::Error + 'static), "gone");
        });
        let line: Value = serde_json::from_str(&text).unwrap();
        assert!(line["fields"]["error"].as_str().unwrap().ends_with(": no route"), "{text}");
    }

    #[test]
    fn a_json_line_is_one_object_with_the_job() {
        let text = written(Form::Json, "info", || {
            job_span("TicketingJob", "NORTON", ID)
                .in_scope(|| info!(count = 2, ok = true, "Ticket\ncreated"));
        });
        assert_eq!(text.lines().count(), 1);
        let line: Value = serde_json::from_str(&text).unwrap();
        assert!(DateTime::parse_from_rfc3339(line["timestamp"].as_str().unwrap()).is_ok());
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "Ticket\\ncreated");
        assert_eq!(line["fields"], json!({ "count": 2, "ok": true }));
        assert_eq!(line["job"], json!({ "struct": "TicketingJob", "org": "NORTON", "id": ID.to_string() }));
    }

    #[test]
    fn a_json_line_outside_a_job_has_no_job() {
        let text = written(Form::Json, "info", || info!("hello"));
        assert!(serde_json::from_str::<Value>(&text).unwrap().get("job").is_none());
    }

    #[test]
    fn a_huge_message_is_cut_and_says_by_how_much() {
        let text = written(Form::Classic, "info", || info!("{}", "ä".repeat(MAX_LINE_BYTES)));
        assert!(text.len() < MAX_LINE_BYTES + 60);
        assert!(text.trim_end().ends_with(" bytes more)"));
    }
}
