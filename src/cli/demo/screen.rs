//! What the demo shows: lines that stay, and one live table below them on a terminal.

use comfy_table::{Table, presets};
use std::io::{IsTerminal, Write};

/// The terminal, or a file.
pub(super) struct Screen {
    live: bool,
    /// Lines of the table on the screen now.
    drawn: usize,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { live: std::io::stdout().is_terminal(), drawn: 0 }
    }

    /// A line that stays.
    pub(super) fn say(&mut self, line: &str) {
        self.erase();
        write(&format!("{line}\n"));
    }

    /// A statement the operator types.
    pub(super) fn type_sql(&mut self, sql: &str) {
        let mut lines = sql.lines().map(str::trim).filter(|line| !line.is_empty());
        self.say(&format!("=> {}", lines.next().unwrap_or_default()));
        for line in lines {
            self.say(&format!("   {line}"));
        }
    }

    /// Replaces the live table; without a terminal nothing is shown until the end.
    pub(super) fn draw(&mut self, header: &[&str], rows: &[Vec<String>]) {
        if self.live {
            self.erase();
            let table = table(header, rows);
            self.drawn = table.lines().count();
            write(&format!("{table}\n"));
        }
    }

    /// A table that stays.
    pub(super) fn show(&mut self, header: &[&str], rows: &[Vec<String>]) {
        self.say(&table(header, rows));
    }

    fn erase(&mut self) {
        if self.drawn > 0 {
            write(&format!("\x1b[{}A\x1b[J", self.drawn));
            self.drawn = 0;
        }
    }
}

fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt()
}

/// A closed pipe is no reason to stop the demo.
fn write(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
