//! Lists of the console, page after page, with nothing left out.
//!
//! The console counts pages, so the place in a list is what is counted here: a page may hold fewer than were asked for,
//! and an answer that is too long is asked for again in smaller pages. When the list became shorter meanwhile, the items
//! behind what was deleted have moved up past the place that was read: that many places are read again. What comes
//! twice is handed on once. A page that is short although others follow, that is another than the one asked for, or that
//! is the one before it once more ends the list with an error, because whoever reads it takes silence for an answer.

use super::rest::{Failure, Rest};
use super::wire::Page;
use futures_util::stream::{self, Stream};
use serde::de::DeserializeOwned;
use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The items of a list.
#[derive(Debug)]
pub(super) struct Pages<'a, T> {
    rest: &'a Rest,
    tail: String,
    query: Vec<(&'static str, &'static str)>,
    doing: &'static str,
    /// What an item is known by, from itself and its text.
    key: fn(&T, &str) -> String,
    /// Items before the place that is read next.
    place: usize,
    size: usize,
    /// As the last answer had it.
    total: Option<usize>,
    last: Option<u64>,
    calls: usize,
    is_over: bool,
    seen: HashSet<String>,
    ready: VecDeque<Result<T, String>>,
}

/// Calls for one list at most, so that no console keeps a job for ever.
const MAX_CALLS: usize = 100_000;
/// Of an item that makes no sense, in an error.
const REPEATED: usize = 200;

impl<'a, T: DeserializeOwned> Pages<'a, T> {
    /// `size` items a page if the console gives as many. `doing` finishes "the console refused to ".
    pub(super) fn new(
        rest: &'a Rest,
        tail: String,
        size: usize,
        doing: &'static str,
        key: fn(&T, &str) -> String,
    ) -> Self {
        Self {
            rest,
            tail,
            query: Vec::new(),
            doing,
            key,
            place: 0,
            size,
            total: None,
            last: None,
            calls: 0,
            is_over: false,
            seen: HashSet::new(),
            ready: VecDeque::new(),
        }
    }

    /// With one more pair in the query.
    pub(super) fn query(mut self, name: &'static str, value: &'static str) -> Self {
        self.query.push((name, value));
        self
    }

    /// The next item, or what is wrong with it.
    pub(super) async fn next(&mut self) -> Result<Option<Result<T, String>>, Failure> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(Some(item));
            }
            if self.is_over {
                return Ok(None);
            }
            self.turn().await?;
        }
    }

    /// All of them; one that makes no sense is a failure of all.
    pub(super) async fn all(mut self) -> Result<Vec<T>, Failure> {
        let mut all = Vec::new();
        while let Some(item) = self.next().await? {
            all.push(item.map_err(Failure::Odd)?);
        }
        Ok(all)
    }

    /// One after the other, and nothing after a failure.
    pub(super) fn stream(self) -> impl Stream<Item = Result<Result<T, String>, Failure>> + Send + 'a
    where
        T: Send + 'a,
    {
        stream::unfold(Some(self), |pages| async move {
            let mut pages = pages?;
            match pages.next().await {
                Ok(Some(item)) => Some((Ok(item), Some(pages))),
                Ok(None) => None,
                Err(failure) => Some((Err(failure), None)),
            }
        })
    }

    async fn turn(&mut self) -> Result<(), Failure> {
        self.calls += 1;
        if self.calls > MAX_CALLS {
            return Err(self.odd(&format!("it takes more than {MAX_CALLS} pages")));
        }
        let number = self.place / self.size;
        let call = Rest::get(&self.tail).query("page", number).query("size", self.size);
        let call = self.query.iter().fold(call, |call, (name, value)| call.query(*name, value));
        let page: Page = match self.rest.read(call, self.doing).await {
            Err(Failure::TooLong(_)) if self.size > 1 => {
                self.size /= 2;
                return Ok(());
            }
            page => page?,
        };
        let info = page.page;
        if info.number != number {
            return Err(
                self.odd(&format!("it was asked for page {number} and answered page {}", info.number))
            );
        }
        // Fewer a page than asked for: the place is behind, never before what was read.
        if info.size > 0 {
            self.size = info.size.min(self.size);
        }
        let begin = number * self.size;
        let is_last = number + 1 >= info.total_pages;
        if !is_last && page.resources.len() < self.size {
            return Err(self.odd(&format!(
                "page {number} of {} has {} items and should have {}",
                info.total_pages,
                page.resources.len(),
                self.size
            )));
        }
        let mut hasher = DefaultHasher::new();
        page.resources.iter().for_each(|item| item.get().hash(&mut hasher));
        let hash = Some(hasher.finish());
        if !page.resources.is_empty() && hash == self.last {
            return Err(self.odd(&format!("page {number} is the page before it once more")));
        }
        for item in page.resources {
            self.take(item.get());
        }
        let deleted = self.total.map_or(0, |total| total.saturating_sub(info.total_resources));
        self.total = Some(info.total_resources);
        if deleted > 0 && begin > 0 {
            (self.place, self.last) = (begin.saturating_sub(deleted), None);
        } else {
            (self.place, self.last) = (begin + self.size, hash);
            self.is_over = is_last;
        }
        Ok(())
    }

    fn take(&mut self, raw: &str) {
        let item = serde_json::from_str::<T>(raw);
        let key = item.as_ref().map_or_else(|_| raw.to_owned(), |item| (self.key)(item, raw));
        if self.seen.insert(key) {
            self.ready.push_back(item.map_err(|error| {
                let begin = super::prose::one_line(raw, REPEATED);
                format!("it does not make sense: {error}; it begins with {begin}")
            }));
        }
    }

    fn odd(&self, problem: &str) -> Failure {
        Failure::Odd(format!("the console was asked to {}, and its list has a gap: {problem}", self.doing))
    }
}
