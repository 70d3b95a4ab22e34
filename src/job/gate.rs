//! The last question before an effect outside: may this run still act?
//!
//! A run may act while its runner's lease is sure, the lease is the one its row was claimed under, and the run
//! has not been ended without it (aborted, abandoned, lost). All three are known in this process, so asking
//! costs no statement. What lies between the answer and the effect itself cannot be closed by anybody: a process
//! may be frozen there. Steps with an idempotency key ([`super::JobContext::effect`]) bear that.

use crate::lease::{Lease, Standing};
use crate::seeded_bugs::{self, Bug};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Lets the effects of one run pass, or not.
#[derive(Debug, Clone)]
pub(crate) struct EffectGate {
    lease: Arc<Lease>,
    /// `Runner.ID` its row was claimed under.
    runner: Uuid,
    /// Cancelled when the run is over for its row, whatever its own code still does.
    over: CancellationToken,
}

/// This run's row may be another run's by now; nothing may be done in its name any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "failed to act for this row: it is no longer this run's, which was taken for dead or ended without it"
)]
pub struct NotOursAnyMore;

impl EffectGate {
    pub(crate) fn new(lease: Arc<Lease>, runner: Uuid, over: CancellationToken) -> Self {
        Self { lease, runner, over }
    }

    /// For runs without a daemon around them.
    pub(crate) fn open(runner: Uuid) -> Self {
        Self::new(Arc::new(Lease::endless(runner)), runner, CancellationToken::new())
    }

    /// Whether the run may act at this moment, or would have to wait to know.
    pub(crate) fn is_open(&self) -> Result<bool, NotOursAnyMore> {
        if self.over.is_cancelled() && !seeded_bugs::is(Bug::GateIgnoresRunner) {
            return Err(NotOursAnyMore);
        }
        match self.lease.standing(self.runner) {
            Standing::Valid => Ok(true),
            Standing::Lapsed => Ok(seeded_bugs::is(Bug::GateIgnoresLapse)),
            Standing::Lost => Err(NotOursAnyMore),
        }
    }

    /// Returns when the lease that its row was claimed under is no longer sure: a sixth of it before anybody may take
    /// over. What the run itself still has in flight must end now, because nobody else will count it.
    pub(crate) async fn lapsed(&self) {
        self.lease.while_valid(self.runner).await;
    }

    /// Waits while the lease has lapsed: the database is away, and whether others took the row is not known.
    pub(crate) async fn pass(&self) -> Result<(), NotOursAnyMore> {
        while !self.is_open()? {
            tokio::select! {
                () = self.over.cancelled(), if !seeded_bugs::is(Bug::GateIgnoresRunner) => {}
                () = self.lease.while_lapsed(self.runner) => {}
            }
        }
        Ok(())
    }
}
