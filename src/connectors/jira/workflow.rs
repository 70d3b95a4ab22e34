//! Brings an issue to a status, step by step. JIRA tells the steps from where an issue is and no others, so a way of
//! several steps is found in `workflow` of Payload.

use super::rest::issue_path;
use super::settings::{Settings, same};
use super::wire::{Issue, Transition, Transitions};
use super::{Jira, issue};
use crate::connectors::StatusCode;
use crate::connectors::ticket_engine::TicketError;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, VecDeque};

/// What a step needs to know besides the workflow.
pub(super) struct Wish<'a> {
    /// A status of ours.
    pub(super) status: &'a str,
    /// Values for fields that a step may require, by ID.
    pub(super) fields: &'a Map<String, Value>,
}

/// Takes steps until the issue is where it shall be. An attempt that finds it there takes none; one that died in the
/// middle is gone on with from where the issue is.
pub(super) async fn bring(jira: &Jira, mut issue: Issue, wish: Wish<'_>) -> Result<(), TicketError> {
    const DOING: &str = "take a step of its workflow";
    let rest = &jira.rest;
    let key = issue.key.clone();
    let tail = format!("{}/transitions", issue_path(&key)?);
    let mut been: Vec<String> = Vec::new();
    loop {
        let status = issue::status(&issue).unwrap_or_default().to_owned();
        if jira.settings.is_there(wish.status, &status, issue::resolution(&issue)) {
            return Ok(());
        }
        let circle = been.iter().any(|before| same(before, &status));
        been.push(status.clone());
        if circle {
            let problem =
                format!("its workflow leads in a circle and not to {}: {}", wish.status, been.join(", "));
            return Err(rest.workflow_problem(&key, problem));
        }
        let call = rest.get(&tail).query("expand", "transitions.fields");
        let offered: Transitions = rest.read(call, "list the steps of its workflow").await?;
        let step = choose(&offered.transitions, &jira.settings, &been, &wish)
            .map_err(|problem| rest.workflow_problem(&key, problem))?;
        let mut body = json!({"transition": {"id": step.transition.id}});
        if !step.fields.is_empty() {
            body["fields"] = Value::Object(step.fields);
        }
        let refusal = rest.try_call(rest.post(&tail, &body), DOING).await?.err();
        issue = jira.issue(&key, &issue_fields(), None).await?.ok_or_else(|| super::gone(&key))?;
        // Somebody else may have taken a step at the same time, and then this one was not to be had any more.
        if let Some(refusal) = refusal
            && issue::status(&issue).is_some_and(|now| same(now, &status))
        {
            if refusal.status != StatusCode::BAD_REQUEST {
                return Err(jira.refused(refusal).await);
            }
            let discovery = jira.discovery().await?;
            let why = refusal.complaints(|id| discovery.name(id));
            let problem = format!("JIRA refused the step {:?} from {status:?}: {why}", step.transition.name);
            return Err(rest.workflow_problem(&key, problem));
        }
    }
}

/// The fields of an issue that tell where it is.
pub(super) fn issue_fields() -> [&'static str; 2] {
    ["status", "resolution"]
}

/// A step to take, and what to fill in.
#[derive(Debug)]
struct Step<'a> {
    transition: &'a Transition,
    fields: Map<String, Value>,
}

/// The step that leads there, or else the first of the shortest way that Payload knows, though not back to where the
/// issue has `been`; it is at the last of these. An error is a sentence for the operator.
fn choose<'a>(
    offered: &'a [Transition],
    settings: &Settings,
    been: &[String],
    wish: &Wish<'_>,
) -> Result<Step<'a>, String> {
    let from = been.last().map_or("", String::as_str);
    let wanted = settings.to_jira(wish.status);
    let leading_to = |target: &str| offered.iter().filter(|step| same(&step.to.name, target)).collect();
    let mut steps: Vec<&Transition> = leading_to(wanted);
    if steps.is_empty() {
        let known = settings.workflow.get(&from.to_lowercase());
        let next = known
            .into_iter()
            .flatten()
            .filter(|next| offered.iter().any(|step| same(&step.to.name, next)))
            .filter(|next| !been.iter().any(|before| same(before, next)))
            .filter_map(|next| Some((distance(&settings.workflow, next, wanted)?, next)))
            .min_by_key(|(distance, _)| *distance);
        if let Some((_, next)) = next {
            steps = leading_to(next);
        }
    }
    if steps.is_empty() {
        let offered: Vec<String> =
            offered.iter().map(|step| format!("{:?} (to {:?})", step.name, step.to.name)).collect();
        let offered = if offered.is_empty() { "no step".to_owned() } else { offered.join(", ") };
        let way = if settings.workflow.is_empty() { "give a way" } else { "no way is known" };
        return Err(format!(
            "it cannot go from {from:?} to {wanted:?}, which {} is in JIRA: its workflow offers {offered}, and {way} in \
             `workflow` of Payload",
            wish.status
        ));
    }
    let mut problem = String::new();
    for transition in steps {
        match fill(transition, settings, wish) {
            Ok(fields) => return Ok(Step { transition, fields }),
            Err(lacking) => problem = lacking,
        }
    }
    Err(problem)
}

/// What a step wants to be filled in.
fn fill(step: &Transition, settings: &Settings, wish: &Wish<'_>) -> Result<Map<String, Value>, String> {
    let mut filled = Map::new();
    for (id, field) in &step.fields {
        let is_needed = field.required && !field.has_default_value;
        let allowed: Vec<&str> =
            field.allowed_values.iter().filter_map(|value| value.get("name")?.as_str()).collect();
        if id == "resolution" {
            let wanted = settings.resolution_map.get(wish.status);
            let found = wanted.and_then(|wanted| allowed.iter().find(|name| same(name, wanted)));
            match (wanted, found, &allowed[..]) {
                (_, Some(name), _) => drop(filled.insert(id.clone(), json!({ "name": name }))),
                (Some(wanted), None, _) => {
                    return Err(format!(
                        "the step {:?} takes no resolution {wanted:?}, as `resolution_map.{}` in Payload wants it; it \
                         takes {}",
                        step.name,
                        wish.status,
                        allowed.join(", ")
                    ));
                }
                (None, _, [only]) if is_needed => drop(filled.insert(id.clone(), json!({ "name": only }))),
                (None, ..) if is_needed => {
                    return Err(format!(
                        "the step {:?} wants a resolution; give one of {} as `resolution_map.{}` in Payload",
                        step.name,
                        allowed.join(", "),
                        wish.status
                    ));
                }
                (None, ..) => {}
            }
        } else if let (true, Some(value)) = (is_needed, wish.fields.get(id)) {
            filled.insert(id.clone(), value.clone());
        } else if is_needed {
            return Err(format!(
                "the step {:?} requires the field {:?} ({id}), for which rosterd has no value; give it a default, or \
                 take it off the screen of this step",
                step.name, field.name
            ));
        }
    }
    Ok(filled)
}

/// Steps from one status to another.
fn distance(workflow: &BTreeMap<String, Vec<String>>, from: &str, to: &str) -> Option<usize> {
    let (from, to) = (from.to_lowercase(), to.to_lowercase());
    let mut seen = BTreeMap::from([(from.clone(), 0)]);
    let mut next = VecDeque::from([from]);
    while let Some(at) = next.pop_front() {
        let steps = seen[&at];
        if at == to {
            return Some(steps);
        }
        for neighbour in workflow.get(&at).into_iter().flatten().map(|name| name.to_lowercase()) {
            if !seen.contains_key(&neighbour) {
                seen.insert(neighbour.clone(), steps + 1);
                next.push_back(neighbour);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(more: &Value) -> Settings {
        let mut payload = json!({"project": "SEC", "issue_type": "Request"});
        payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Settings::new(&payload, "h").unwrap()
    }

    fn offered(steps: &Value) -> Vec<Transition> {
        serde_json::from_value(steps.clone()).unwrap()
    }

    fn chosen(
        steps: &Value,
        payload: &Value,
        from: &str,
        to: &str,
    ) -> Result<(String, Map<String, Value>), String> {
        let steps = offered(steps);
        let wish = Wish { status: to, fields: &Map::new() };
        choose(&steps, &settings(payload), &[from.to_owned()], &wish)
            .map(|step| (step.transition.id.clone(), step.fields))
    }

    #[test]
    fn the_shortest_way_that_is_offered_is_taken() {
        let steps = json!([
            {"id": "1", "name": "Wait", "to": {"name": "Waiting"}},
            {"id": "2", "name": "Start", "to": {"name": "In Progress"}},
        ]);
        let payload = json!({"workflow": {
            "Open": ["Closed", "Waiting", "in progress"], "Waiting": ["In Progress"], "In Progress": ["Done"],
        }});
        assert_eq!(chosen(&steps, &payload, "OPEN", "Done").unwrap().0, "2");
        assert_eq!(chosen(&steps, &payload, "Open", "waiting").unwrap().0, "1");
        let problem = chosen(&steps, &payload, "Open", "Elsewhere").unwrap_err();
        for word in ["\"Open\"", "\"Elsewhere\"", "\"Wait\" (to \"Waiting\")", "\"Start\"", "`workflow`"] {
            assert!(problem.contains(word), "{problem}");
        }
    }

    #[test]
    fn what_a_step_requires_is_filled_in_or_named() {
        let close =
            |fields: Value| json!([{"id": "1", "name": "Close", "to": {"name": "Closed"}, "fields": fields}]);
        let resolution = |names: &[&str]| {
            let names: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
            close(json!({"resolution": {"required": true, "name": "Resolution", "allowedValues": names}}))
        };
        let none = json!({});
        let mapped = json!({"resolution_map": {"Closed": "fixed"}});
        let filled = |steps: &Value, payload: &Value| chosen(steps, payload, "Open", "Closed");
        assert_eq!(filled(&resolution(&["Done"]), &none).unwrap().1["resolution"], json!({"name": "Done"}));
        assert_eq!(
            filled(&resolution(&["Done", "Fixed"]), &mapped).unwrap().1["resolution"],
            json!({"name": "Fixed"})
        );
        let problem = filled(&resolution(&["Done", "Fixed"]), &none).unwrap_err();
        assert!(problem.contains("one of Done, Fixed as `resolution_map.Closed`"), "{problem}");
        let problem = filled(&resolution(&["Done"]), &mapped).unwrap_err();
        assert!(problem.contains("no resolution \"fixed\""), "{problem}");
        let cause = close(json!({"customfield_7": {"required": true, "name": "Root Cause"}}));
        let problem = filled(&cause, &none).unwrap_err();
        assert!(problem.contains("\"Close\" requires the field \"Root Cause\" (customfield_7)"), "{problem}");
        let default = close(json!({"x": {"required": true, "name": "X", "hasDefaultValue": true}}));
        assert!(filled(&default, &none).unwrap().1.is_empty());
    }
}
