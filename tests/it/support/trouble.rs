//! What goes wrong at a fake server, request by request. Each server only says of what kind a request is and how it is
//! answered when nothing goes wrong.

use super::api::Reply;

/// What goes wrong with one request.
#[derive(Clone)]
pub enum Trouble {
    /// It is answered with this, and nothing is done.
    Said(Reply),
    /// The connection is closed, and nothing is done.
    Lost,
    /// It is done, and the connection is closed.
    Cut,
    /// It is done, and half of the answer is sent.
    Half,
    /// It is done, and no answer comes.
    Silent,
}

struct Expected {
    kind: String,
    /// So many of this kind go well before it.
    spared: usize,
    trouble: Trouble,
}

/// Troubles to come. Those of one kind come one after the other.
#[derive(Default)]
pub struct Troubles(Vec<Expected>);

impl Troubles {
    pub fn expect(&mut self, kind: &str, spared: usize, trouble: Trouble) {
        self.0.push(Expected { kind: kind.to_owned(), spared, trouble });
    }

    /// What this request meets.
    pub fn meet(&mut self, kind: &str) -> Option<Trouble> {
        let at = self.0.iter().position(|expected| expected.kind == kind)?;
        match &mut self.0[at].spared {
            0 => Some(self.0.remove(at).trouble),
            spared => {
                *spared -= 1;
                None
            }
        }
    }
}

/// What becomes of a request that meets this and would be answered by `answer`.
pub fn suffer(trouble: Option<Trouble>, answer: impl FnOnce() -> Reply) -> Reply {
    match trouble {
        None => answer(),
        Some(Trouble::Said(reply)) => reply,
        Some(Trouble::Lost) => Reply::HangUp,
        Some(Trouble::Cut) => {
            drop(answer());
            Reply::HangUp
        }
        Some(Trouble::Silent) => {
            drop(answer());
            Reply::StandStill(Vec::new())
        }
        Some(Trouble::Half) => half(answer()),
    }
}

fn half(reply: Reply) -> Reply {
    let Reply::Answer(status, _, body) = reply else { return reply };
    let mut half = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n", body.len() + 1).into_bytes();
    half.extend(&body[..body.len() / 2]);
    Reply::Partly(half)
}
