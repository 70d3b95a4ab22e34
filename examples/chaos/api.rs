//! The API that jobs call: it is slow, and writes down when it was called and how many calls it was busy with.

use crate::clock::{self, Nanos};
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// One call.
#[derive(Debug, Clone)]
pub struct Arrival {
    pub t: Nanos,
    /// Which source it came through.
    pub source: String,
    /// Calls of that source it was busy with, this one included.
    pub in_flight: u32,
}

/// The API.
#[derive(Default)]
pub struct Api {
    state: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    arrivals: Vec<Arrival>,
    in_flight: std::collections::HashMap<String, u32>,
}

impl Api {
    /// Listens on `at`; returns where.
    pub async fn start(at: SocketAddr) -> (Arc<Self>, SocketAddr) {
        let api = Arc::new(Self::default());
        let router = Router::new().route("/{source}/{row}", get(call)).with_state(Arc::clone(&api));
        let listener = tokio::net::TcpListener::bind(at).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move { axum::serve(listener, router).await });
        (api, address)
    }

    /// All calls so far, in order.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.books().arrivals.clone()
    }

    fn books(&self) -> std::sync::MutexGuard<'_, Books> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a call as in flight until it is answered, or the caller is gone.
struct Flight<'a>(&'a Api, String);

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if let Some(n) = self.0.books().in_flight.get_mut(&self.1) {
            *n -= 1;
        }
    }
}

async fn call(State(api): State<Arc<Api>>, Path((source, _row)): Path<(String, String)>) -> &'static str {
    let flight = {
        let mut books = api.books();
        let t = clock::now();
        let count = books.in_flight.entry(source.clone()).or_default();
        *count += 1;
        let in_flight = *count;
        books.arrivals.push(Arrival { t, source: source.clone(), in_flight });
        Flight(&api, source)
    };
    tokio::time::sleep(Duration::from_millis(60)).await;
    drop(flight);
    "ok"
}
