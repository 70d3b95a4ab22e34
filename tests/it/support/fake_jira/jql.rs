//! JQL as far as the fake understands it: conditions joined by AND, quoted values, ORDER BY. Like JIRA's own parser it
//! refuses what is not quoted and should be.

use super::store::{Issue, Store};
use chrono::{DateTime, Utc};
use jiff::civil;
use jiff::tz::TimeZone;
use std::cmp::Ordering;

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Quoted(String),
    Operator(String),
    Comma,
}

#[derive(Debug)]
struct Condition {
    column: String,
    operator: String,
    value: String,
}

#[derive(Debug, Default)]
pub struct Question {
    conditions: Vec<Condition>,
    order: Vec<(String, bool)>,
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            ' ' => {}
            ',' => tokens.push(Token::Comma),
            '"' => {
                let mut said = String::new();
                loop {
                    match rest.next().ok_or("the quoted string is not ended")? {
                        '"' => break,
                        '\\' => match rest.next() {
                            Some('n') => said.push('\n'),
                            Some('r') => said.push('\r'),
                            Some('t') => said.push('\t'),
                            Some('u') => {
                                let digits: String = rest.by_ref().take(4).collect();
                                let code = u32::from_str_radix(&digits, 16).map_err(|e| e.to_string())?;
                                said.push(char::from_u32(code).ok_or("an illegal escape")?);
                            }
                            Some(c @ ('"' | '\\' | '\'' | ' ')) => said.push(c),
                            other => return Err(format!("{other:?} is an illegal escape sequence")),
                        },
                        c if c.is_control() => return Err("a control character is not escaped".to_owned()),
                        c => said.push(c),
                    }
                }
                tokens.push(Token::Quoted(said));
            }
            '=' | '~' => tokens.push(Token::Operator(c.to_string())),
            '<' | '>' => {
                let with = rest.next_if_eq(&'=').map_or(String::new(), |c| c.to_string());
                tokens.push(Token::Operator(format!("{c}{with}")));
            }
            c if c.is_ascii_alphanumeric() || c == '_' => {
                let mut word = c.to_string();
                while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || "_[]-".contains(*c)) {
                    word.push(c);
                }
                tokens.push(Token::Word(word));
            }
            c => return Err(format!("the character '{c}' is reserved; enclose it in quotes")),
        }
    }
    Ok(tokens)
}

pub fn parse(text: &str) -> Result<Question, String> {
    let mut tokens = tokens(text)?.into_iter().peekable();
    let mut question = Question::default();
    let is_word = |token: Option<&Token>, word: &str| matches!(token, Some(Token::Word(said)) if said.eq_ignore_ascii_case(word));
    while tokens.peek().is_some() && !is_word(tokens.peek(), "order") {
        let column = match tokens.next() {
            Some(Token::Word(name) | Token::Quoted(name)) => name,
            other => return Err(format!("expecting a field, got {other:?}")),
        };
        let Some(Token::Operator(operator)) = tokens.next() else {
            return Err("expecting an operator".to_owned());
        };
        let value = match tokens.next() {
            Some(Token::Quoted(value)) => value,
            other => return Err(format!("expecting a quoted value, got {other:?}")),
        };
        question.conditions.push(Condition { column, operator, value });
        if is_word(tokens.peek(), "and") {
            tokens.next();
        } else if tokens.peek().is_some() && !is_word(tokens.peek(), "order") {
            return Err(format!("expecting AND, got {:?}", tokens.peek()));
        }
    }
    if tokens.next().is_some() && !is_word(tokens.next().as_ref(), "by") {
        return Err("expecting BY".to_owned());
    }
    while let Some(token) = tokens.next() {
        let Token::Word(column) = token else { return Err(format!("expecting a field, got {token:?}")) };
        let down = is_word(tokens.peek(), "desc");
        if down || is_word(tokens.peek(), "asc") {
            tokens.next();
        }
        question.order.push((column, down));
        if let Some(token) = tokens.next()
            && token != Token::Comma
        {
            return Err(format!("expecting a comma, got {token:?}"));
        }
    }
    Ok(question)
}

impl Question {
    /// The keys of the issues that match, in order.
    pub fn answer(&self, store: &Store) -> Result<Vec<String>, String> {
        let mut found = Vec::new();
        for condition in &self.conditions {
            condition.check(store)?;
        }
        for issue in store.issues.iter().filter(|issue| issue.is_found()) {
            let mut holds = true;
            for condition in &self.conditions {
                holds &= condition.holds(issue, store)?;
            }
            if holds {
                found.push(issue);
            }
        }
        found.sort_by(|one, other| {
            let by = |(column, down): &(String, bool)| {
                let order = match column.as_str() {
                    "updated" => one.updated.cmp(&other.updated),
                    "key" => one.number.cmp(&other.number),
                    other => panic!("the fake does not sort by {other}"),
                };
                if *down { order.reverse() } else { order }
            };
            self.order.iter().map(by).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
        });
        Ok(found.into_iter().map(Issue::key).collect())
    }
}

impl Condition {
    fn check(&self, store: &Store) -> Result<(), String> {
        let value = &self.value;
        match self.column.as_str() {
            "project" if value != "SEC" => {
                Err(format!("The value '{value}' does not exist for the field 'project'."))
            }
            "key" if !store.issues.iter().any(|issue| issue.key() == *value) => {
                Err(format!("An issue with key '{value}' does not exist for field 'key'."))
            }
            _ => Ok(()),
        }
    }

    fn holds(&self, issue: &Issue, store: &Store) -> Result<bool, String> {
        let operator = self.operator.as_str();
        let compare = |order: Ordering| match operator {
            "=" => Ok(order.is_eq()),
            ">" => Ok(order.is_gt()),
            ">=" => Ok(order.is_ge()),
            "<" => Ok(order.is_lt()),
            other => Err(format!("the operator '{other}' is not supported by this field")),
        };
        let field = |id: &str| issue.fields.get(id).cloned().unwrap_or_default();
        match (self.column.as_str(), operator) {
            ("project", "=") => Ok(true),
            ("labels", "=") => Ok(field("labels")
                .as_array()
                .is_some_and(|labels| labels.contains(&self.value.as_str().into()))),
            ("key", _) => {
                let number: usize = self.value.trim_start_matches("SEC-").parse().map_err(|_| "no key")?;
                compare(issue.number.cmp(&number))
            }
            ("updated", _) => compare(issue.updated.cmp(&time(&self.value, &store.zone)?)),
            (column, operator) => {
                let number = column.strip_prefix("cf[").and_then(|rest| rest.strip_suffix(']'));
                let id = number.map_or(column.to_owned(), |number| format!("customfield_{number}"));
                let kind = Store::kind(&id).ok_or(format!("Field '{column}' does not exist"))?;
                match (kind, operator) {
                    ("option", "=") => Ok(field(&id)["value"] == self.value.as_str()),
                    ("string", "~") => {
                        let said = words(field(&id).as_str().unwrap_or_default());
                        let phrase = words(&self.value);
                        Ok(said.windows(phrase.len().max(1)).any(|part| part == phrase))
                    }
                    _ => Err(format!("The operator '{operator}' is not supported by the '{column}' field.")),
                }
            }
        }
    }
}

/// In the time zone of the user; of a time that comes twice the later is meant, which is the worse for who asks.
fn time(text: &str, zone: &str) -> Result<DateTime<Utc>, String> {
    let at = civil::DateTime::strptime("%Y/%m/%d %H:%M", text)
        .map_err(|_| format!("Date value '{text}' for field 'updated' is invalid."))?;
    let at = TimeZone::get(zone).unwrap().to_ambiguous_zoned(at).later().map_err(|e| e.to_string())?;
    Ok(DateTime::from_timestamp(at.timestamp().as_second(), 0).unwrap())
}

fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}
