//! Copies of a scan template that look for a few vulnerabilities alone, and go when their scan is over.
//!
//! A copy has the marker of its scan for a name, so that one that an attempt left behind is found again.

use super::rest::{Failure, Rest, part};
use super::wire::{CreatedTemplate, Resources, TemplateName};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// A copy with the checks of these vulnerabilities and no others. `None`: it cannot be made so that it looks for all of
/// them, and the whole template should be used; a scan that does not look for a vulnerability says nothing of it.
pub(super) async fn narrowed(
    rest: &Rest,
    template: &str,
    vulnerabilities: &BTreeSet<&str>,
    marker: &str,
) -> Result<Option<String>, Failure> {
    if let Some(left) = named(rest, marker).await? {
        delete(rest, &left).await?;
    }
    let mut checks = BTreeSet::new();
    for vulnerability in vulnerabilities {
        let path = format!("vulnerabilities/{}/checks", part(vulnerability)?);
        let found: Result<Resources<String>, Failure> =
            rest.get_one(&path, "list the checks of a vulnerability").await;
        match found {
            Ok(found) if !found.resources.is_empty() => checks.extend(found.resources),
            Err(failure) if !failure.is_not_found() => return Err(failure),
            _ => return Ok(None),
        }
    }
    if checks.is_empty() {
        return Ok(None);
    }
    let whole: Value =
        rest.get_one(&format!("scan_templates/{}", part(template)?), "show a scan template").await?;
    let copy = copy_of(whole, marker, &checks);
    let created: CreatedTemplate = rest.create("scan_templates", &copy, "create a scan template").await?;
    Ok(Some(created.id))
}

/// The copy of this name, if there is one.
pub(super) async fn named(rest: &Rest, marker: &str) -> Result<Option<String>, Failure> {
    let all: Resources<TemplateName> = match rest.get_one("scan_templates", "list scan templates").await {
        Err(Failure::TooLong(problem)) => {
            tracing::warn!(%problem, "a copy of a scan template may be left at the console");
            return Ok(None);
        }
        all => all?,
    };
    Ok(all.resources.into_iter().find(|template| template.name == marker).map(|template| template.id))
}

/// One that is gone counts as deleted.
pub(super) async fn delete(rest: &Rest, id: &str) -> Result<(), Failure> {
    rest.delete(&format!("scan_templates/{}", part(id)?), "delete a scan template").await
}

fn copy_of(whole: Value, marker: &str, checks: &BTreeSet<String>) -> Value {
    let mut copy = match whole {
        Value::Object(copy) => copy,
        _ => Map::new(),
    };
    copy.remove("id");
    copy.insert("name".to_owned(), json!(marker));
    let none = json!({"enabled": [], "disabled": []});
    let mut of_checks = match copy.remove("checks") {
        Some(Value::Object(checks)) => checks,
        _ => Map::new(),
    };
    of_checks.insert("categories".to_owned(), none.clone());
    of_checks.insert("types".to_owned(), none);
    of_checks.insert("individual".to_owned(), json!({"enabled": checks, "disabled": []}));
    copy.insert("checks".to_owned(), Value::Object(of_checks));
    let mut copy = Value::Object(copy);
    without_links(&mut copy);
    copy
}

/// Links are the console's to write.
fn without_links(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("links");
            fields.values_mut().for_each(without_links);
        }
        Value::Array(items) => items.iter_mut().for_each(without_links),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_template_with_other_checks_and_another_name() {
        let whole = json!({
            "id": "full-audit", "name": "Full audit", "links": [], "maxParallelAssets": 10,
            "checks": {"unsafe": false, "categories": {"enabled": ["x"], "links": []}, "individual": {"enabled": ["y"]}},
        });
        assert_eq!(
            copy_of(whole, "rosterd-1", &BTreeSet::from(["b".to_owned(), "a".to_owned()])),
            json!({
                "name": "rosterd-1", "maxParallelAssets": 10,
                "checks": {
                    "unsafe": false, "categories": {"enabled": [], "disabled": []},
                    "types": {"enabled": [], "disabled": []},
                    "individual": {"enabled": ["a", "b"], "disabled": []},
                },
            })
        );
    }
}
