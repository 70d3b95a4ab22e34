//! What rows ask for: the jobs rosterd brings along, a folder per family.

pub mod generic;
pub mod vulnerability;

use crate::registry::Registry;

/// Every job of this package. A program with jobs of its own adds them: `built_in().register(MyJob)`.
pub fn built_in() -> Registry {
    vulnerability::register(generic::register(Registry::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_jobs_have_names_of_their_own_and_refuse_unknown_fields() {
        assert_eq!(built_in().check(), Ok(()));
        for name in ["CommandJob", "HttpJob", "SqlJob", "TicketingJob", "RescanQueueJob"] {
            assert_eq!(built_in().find(name).map(|job| job.name()), Some(name));
        }
    }
}
