//! Questions in JQL. Every value goes in quotes, whatever it holds, so none can say more than it should.

use std::fmt::{self, Write};

/// A question: conditions that all hold, and the order of the answers.
#[derive(Debug, Clone)]
pub(super) struct Jql {
    conditions: String,
    order: &'static str,
}

/// What a condition is about.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Column {
    /// A word of JQL itself.
    Word(&'static str),
    /// A custom field by its number, because names may be given twice.
    Custom(u64),
    /// Any other by its name.
    Named(String),
}

/// How a column is compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Is {
    Equal,
    AtLeast,
    Below,
    Above,
    /// Holds these words in this order; what texts have instead of equality.
    Holding,
}

impl Jql {
    /// Everything in a project.
    pub(super) fn project(key: &str) -> Self {
        Self { conditions: format!("project = {}", Quoted(key)), order: "" }
    }

    /// With one more condition.
    #[must_use]
    pub(super) fn and(mut self, column: &Column, is: Is, value: &str) -> Self {
        let operator = match is {
            Is::Equal => "=",
            Is::AtLeast => ">=",
            Is::Below => "<",
            Is::Above => ">",
            Is::Holding => "~",
        };
        // A phrase of the text index within a text of JQL.
        let phrase = (is == Is::Holding).then(|| Quoted(value).to_string());
        let value = Quoted(phrase.as_deref().unwrap_or(value));
        // Writing into a String does not fail.
        let _ = write!(self.conditions, " AND {column} {operator} {value}");
        self
    }

    /// In this order: `key DESC`.
    #[must_use]
    pub(super) fn order_by(self, order: &'static str) -> Self {
        Self { order, ..self }
    }
}

impl fmt::Display for Jql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.conditions)?;
        if !self.order.is_empty() {
            write!(f, " ORDER BY {}", self.order)?;
        }
        Ok(())
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => f.write_str(word),
            Self::Custom(number) => write!(f, "cf[{number}]"),
            Self::Named(name) => Quoted(name).fmt(f),
        }
    }
}

/// A text as JQL writes it.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                // Not allowed as they stand.
                c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_in_jql_are_quoted_whatever_they_hold() {
        let asked = |value: &str| {
            Jql::project("SEC")
                .and(&Column::Word("labels"), Is::Equal, value)
                .order_by("key DESC")
                .to_string()
        };
        assert_eq!(asked("rosterd-1"), r#"project = "SEC" AND labels = "rosterd-1" ORDER BY key DESC"#);
        assert_eq!(
            asked(r#"x" OR project = "HR"#),
            r#"project = "SEC" AND labels = "x\" OR project = \"HR" ORDER BY key DESC"#
        );
        assert!(asked(r"a\").contains(r#"= "a\\" ORDER"#));
        assert!(asked("a\nb\t\u{1}").contains(r#"= "a\nb\t\u0001" ORDER"#));
        assert!(asked("").contains(r#"= "" ORDER"#));
        assert!(asked("grüße 'x'").contains(r#"= "grüße 'x'" ORDER"#));
    }

    #[test]
    fn columns_are_words_numbers_or_quoted_names() {
        let asked = Jql::project("SEC")
            .and(&Column::Custom(10_001), Is::Holding, "a \"b\"")
            .and(&Column::Named("Odd\" Name".to_owned()), Is::Above, "1")
            .to_string();
        assert_eq!(asked, r#"project = "SEC" AND cf[10001] ~ "\"a \\\"b\\\"\"" AND "Odd\" Name" > "1""#);
    }

    proptest! {
        #[test]
        fn a_quoted_text_ends_where_it_should(text in any::<String>()) {
            let quoted = Quoted(&text).to_string();
            let inner = quoted.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
            let mut escaped = false;
            for c in inner.chars() {
                prop_assert!(!c.is_control());
                if escaped {
                    escaped = false;
                } else {
                    prop_assert!(c != '"');
                    escaped = c == '\\';
                }
            }
            prop_assert!(!escaped);
        }
    }
}
