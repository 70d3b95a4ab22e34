//! Atlassian's document format, in which Cloud keeps long texts. Paragraphs and line breaks are all that is written.

use serde_json::{Value, json};

/// A plain text as a document: blank lines end paragraphs.
pub(super) fn from_text(text: &str) -> Value {
    let text = text.replace("\r\n", "\n");
    let paragraphs: Vec<Value> = text
        .split("\n\n")
        .map(|paragraph| paragraph.trim_matches('\n'))
        .filter(|paragraph| !paragraph.is_empty())
        .map(|paragraph| json!({"type": "paragraph", "content": lines(paragraph)}))
        .collect();
    json!({"version": 1, "type": "doc", "content": paragraphs})
}

/// A node of text must not be empty, so an empty line is its break alone.
fn lines(paragraph: &str) -> Vec<Value> {
    let mut nodes = Vec::new();
    for (nth, line) in paragraph.split('\n').enumerate() {
        if nth > 0 {
            nodes.push(json!({"type": "hardBreak"}));
        }
        if !line.is_empty() {
            nodes.push(json!({"type": "text", "text": line}));
        }
    }
    nodes
}

/// What a document says, or a text as it is. `None` where it is neither.
pub(super) fn to_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(node) if node.get("type").is_some_and(|kind| kind == "doc") => {
            let mut text = String::new();
            collect(value, &mut text, 0);
            Some(text.trim_end().to_owned())
        }
        _ => None,
    }
}

fn collect(node: &Value, text: &mut String, depth: usize) {
    // People nest lists and tables a few levels deep.
    if depth > 64 {
        return;
    }
    let kind = node.get("type").and_then(Value::as_str).unwrap_or_default();
    match kind {
        "hardBreak" => text.push('\n'),
        "text" => text.push_str(node.get("text").and_then(Value::as_str).unwrap_or_default()),
        _ => {}
    }
    for child in node.get("content").and_then(Value::as_array).into_iter().flatten() {
        collect(child, text, depth + 1);
    }
    if matches!(kind, "paragraph" | "heading" | "codeBlock") && !text.ends_with("\n\n") {
        text.push_str("\n\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paragraphs_and_lines_go_there_and_come_back() {
        let text = "One\ntwo\n\nthree";
        let document = from_text(text);
        assert_eq!(document["content"][0]["content"][1], json!({"type": "hardBreak"}));
        assert_eq!(document["content"][1]["content"][0], json!({"type": "text", "text": "three"}));
        assert_eq!(to_text(&document).unwrap(), text);
        assert_eq!(to_text(&json!("plain")).unwrap(), "plain");
        assert_eq!(to_text(&json!(5)), None);
    }

    proptest! {
        #[test]
        fn no_node_of_text_is_empty(text in "[a\n\r ]{0,30}") {
            let document = from_text(&text).to_string();
            let empty = "\"text\":\"\"";
            prop_assert!(!document.contains(empty));
        }
    }
}
