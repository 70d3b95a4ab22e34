//! Comments that are left once. The last line of each names the change it belongs to, so that an attempt that died
//! after it had left the comment is told from one that had not.

use super::document;
use super::fields::{self, TEXT};
use super::rest::{Rest, issue_path};
use super::wire::Comments;
use crate::connectors::ticket_engine::TicketError;
use serde_json::json;

/// Comments asked for at once. JIRA may answer fewer.
const PAGE: usize = 100;

/// Whether the comment with this marker is there. It is left last, so all that belongs to it was done.
pub(super) async fn is_left(rest: &Rest, key: &str, marker: &str, text: &str) -> Result<bool, TicketError> {
    Ok(!text.trim().is_empty() && is_there(rest, key, &line(marker)).await?)
}

/// Leaves a comment, unless one with this marker is there. Empty texts are no comments.
pub(super) async fn leave(rest: &Rest, key: &str, marker: &str, text: &str) -> Result<(), TicketError> {
    if text.trim().is_empty() {
        return Ok(());
    }
    let line = line(marker);
    if is_there(rest, key, &line).await? {
        return Ok(());
    }
    // The marker must not be what is cut.
    let room = TEXT - line.encode_utf16().count().min(TEXT) - 2;
    let text = format!("{}\n\n{line}", fields::at_most(text.trim_end(), room));
    let body = json!({"body": fields::long_text(&text, rest.flavour)});
    rest.call(rest.post(&format!("{}/comment", issue_path(key)?), &body), "take a comment").await?;
    Ok(())
}

fn line(marker: &str) -> String {
    format!("[rosterd:{}]", fields::one_line(marker, fields::LINE))
}

/// Looks through all comments, newest first; an offset advances by what came. A comment that is added meanwhile moves
/// others to a later page, where they are met again; none is passed over.
async fn is_there(rest: &Rest, key: &str, line: &str) -> Result<bool, TicketError> {
    let tail = format!("{}/comment", issue_path(key)?);
    let mut read = 0;
    loop {
        let call =
            rest.get(&tail).query("startAt", read).query("maxResults", PAGE).query("orderBy", "-created");
        let page: Comments = rest.read(call, "list comments").await?;
        let ends_so = |text: String| text.lines().next_back().is_some_and(|last| last.trim() == line);
        if page.comments.iter().any(|comment| document::to_text(&comment.body).is_some_and(ends_so)) {
            return Ok(true);
        }
        read += page.comments.len();
        if page.comments.is_empty() || read >= page.total {
            return Ok(false);
        }
    }
}
