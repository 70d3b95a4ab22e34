//! How much to ask for at once, so that an answer is not longer than `sources.response_max_bytes`.

/// Hosts of a page, or numbers of a range.
#[derive(Debug, Clone, Copy)]
pub(super) struct Portion {
    now: u64,
    most: u64,
}

impl Portion {
    /// By what one takes of an answer that may have so many bytes, and at most `most`.
    pub(super) fn new(answer: usize, one: u64, most: u64) -> Self {
        let answer = u64::try_from(answer).unwrap_or(u64::MAX);
        Self { now: (answer / one).clamp(1, most), most }
    }

    /// What to ask for now.
    pub(super) fn now(self) -> u64 {
        self.now
    }

    /// The answer was too long. Returns whether there is a smaller portion.
    pub(super) fn shrink(&mut self) -> bool {
        let is_one = self.now == 1;
        self.now = (self.now / 2).max(1);
        !is_one
    }

    /// The answer had so many bytes. Where that is little, more is asked for the next time: calls are counted at Qualys.
    pub(super) fn grow(&mut self, bytes: usize, answer: usize) {
        if bytes < answer / 4 {
            self.now = self.now.saturating_mul(2).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portion_is_halved_down_to_one_and_doubled_up_to_the_most() {
        let mut portion = Portion::new(10_000, 1000, 20);
        assert_eq!(portion.now(), 10);
        for expected in [5, 2, 1] {
            assert!(portion.shrink());
            assert_eq!(portion.now(), expected);
        }
        assert!(!portion.shrink());
        portion.grow(2600, 10_000);
        assert_eq!(portion.now(), 1);
        for _ in 0..9 {
            portion.grow(2400, 10_000);
        }
        assert_eq!(portion.now(), 20);
        assert_eq!(Portion::new(0, 1000, 20).now(), 1);
    }
}
