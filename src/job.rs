//! What a job author implements, and what the job gets.
//!
//! A [`Job`] is found by its `STRUCT` name, gets its decoded payload and a [`JobContext`], and returns an
//! [`Outcome`] or a [`JobError`]. It never touches `JobHistory`: the engine turns what it returns into the
//! row's next status.

mod complete;
mod context;
mod effect;
mod error;
mod gate;
mod outcome;

pub use crate::history::effects::Before;
pub use context::{Child, JobContext, JobRow};
pub(crate) use context::{ContextParts, ProgressBoard, lapsed};
pub use effect::Effect;
pub use error::{ErrorKind, JobError};
pub(crate) use gate::EffectGate;
pub use gate::NotOursAnyMore;
pub use outcome::Outcome;
pub(crate) use outcome::storable_result;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::future::Future;

/// A registered kind of work.
///
/// One value serves every run, so it holds settings and caches, never the state of one run. A run may be
/// repeated (at least once is the promise), so its effects must bear that: use the row's ID as the
/// idempotency key of outside calls.
///
/// ```
/// use rosterd::job::{Job, JobContext, JobError, Outcome};
///
/// struct GreetJob;
///
/// #[derive(serde::Deserialize, schemars::JsonSchema)]
/// #[serde(deny_unknown_fields)]
/// struct Greeting {
///     name: String,
/// }
///
/// impl Job for GreetJob {
///     const STRUCT: &'static str = "GreetJob";
///     const DESCRIPTION: &'static str = "Says hello to somebody";
///     type Payload = Greeting;
///
///     async fn run(&self, ctx: JobContext, payload: Greeting) -> Result<Outcome, JobError> {
///         ctx.info(format!("hello {}", payload.name));
///         Ok(Outcome::with_result(serde_json::json!({ "greeted": payload.name })))
///     }
/// }
/// ```
pub trait Job: Send + Sync + 'static {
    /// The name operators use (`Job.Struct`). A stored promise: it is never changed once rows name it.
    const STRUCT: &'static str;
    /// One sentence for `Job.Description` and `rosterd job list`.
    const DESCRIPTION: &'static str;
    /// The priority of its rows unless `JobConfig.PriorityOverride` says otherwise; lower runs earlier.
    const PRIORITY: i32 = 5;
    /// The JSON object it wants. Derive `Deserialize` with `deny_unknown_fields`, and `JsonSchema`; put units
    /// in the field names (`_seconds`, `_days`, `_bytes`). The registry refuses a payload type that takes
    /// unknown fields, because a misspelt field would then be dropped silently.
    type Payload: DeserializeOwned + JsonSchema + Send + 'static;

    /// Does the work. Waits inside must hear [`JobContext::cancelled`]; what does not is aborted after the
    /// grace time, at its next `.await`.
    fn run(
        &self,
        ctx: JobContext,
        payload: Self::Payload,
    ) -> impl Future<Output = Result<Outcome, JobError>> + Send;
}

/// The payload of a job that needs none: `{}`.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoPayload {}
