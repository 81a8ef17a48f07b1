// SPDX-License-Identifier: Apache-2.0
//! Answers as text for people. Every value from elsewhere goes through [`crate::text::visible`].

mod dataflow;
mod explanation;
mod flow;
mod inside;
mod services;
mod status;
mod threats;
mod top;
mod vm;

use std::fmt::Write;
use std::time::Duration;

use api::Diagnostic;
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use serde::Serialize;

pub(crate) use self::dataflow::{data_flow, graph};
pub(crate) use self::explanation::explanation;
pub(crate) use self::flow::{flow_line, flows};
pub(crate) use self::inside::{process_details, process_tree, socket_details};
pub(crate) use self::services::services;
pub(crate) use self::status::{policy_status, port_moved, status};
pub(crate) use self::threats::threats;
pub(crate) use self::top::top;
pub(crate) use self::vm::{processes, sockets, vms, wide_vms};
use crate::text::{visible, visible_sentence};

/// What the output can show.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Style {
    /// Its width is known and bounds tables.
    pub(crate) terminal: bool,
    /// Colours are welcome.
    pub(crate) colour: bool,
}

impl Style {
    pub(crate) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    pub(crate) fn notice(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(crate) fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// What a cell's colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tone {
    Plain,
    Good,
    Bad,
    Notice,
}

/// A table without lines: columns two spaces apart, numbers to the right.
struct Grid {
    table: Table,
    style: Style,
    /// Columns of numbers.
    right: &'static [usize],
}

impl Grid {
    fn new(style: Style, header: &[&str], right: &'static [usize]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        if !style.terminal {
            table.force_no_tty().set_content_arrangement(ContentArrangement::Disabled);
        }
        table.set_header(header.to_vec());
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            if right.contains(&index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        Self { table, style, right }
    }

    fn row(&mut self, cells: Vec<(String, Tone)>) {
        let cells = cells.into_iter().enumerate().map(|(index, (text, tone))| {
            let align = if self.right.contains(&index) { CellAlignment::Right } else { CellAlignment::Left };
            let cell = Cell::new(visible(&text)).set_alignment(align);
            match tone {
                _ if !self.style.colour => cell,
                Tone::Plain => cell,
                Tone::Good => cell.fg(Color::Green),
                Tone::Bad => cell.fg(Color::Red),
                Tone::Notice => cell.fg(Color::Yellow),
            }
        });
        self.table.add_row(cells.collect::<Vec<_>>());
    }

    /// The table, or a sentence if it has no rows.
    fn finish(self, empty: &str) -> String {
        if self.table.is_empty() {
            return format!("{empty}\n");
        }
        self.table.lines().fold(String::new(), |shown, line| shown + line.trim_end() + "\n")
    }
}

/// A cell without colour.
fn plain(text: impl ToString) -> (String, Tone) {
    (text.to_string(), Tone::Plain)
}

/// A cell for what may be absent.
fn maybe(value: Option<impl ToString>) -> (String, Tone) {
    plain(value.map_or_else(|| "-".to_owned(), |value| value.to_string()))
}

/// Diagnostics as editors understand them, each with its help below.
pub(crate) fn diagnostics(diagnostics: &[Diagnostic], style: Style) -> String {
    let mut shown = String::new();
    for diagnostic in diagnostics {
        let line = visible_sentence(&diagnostic.to_string());
        writeln!(shown, "{line}").expect("a string takes all that is written");
        if !diagnostic.help.is_empty() {
            let help = visible_sentence(&diagnostic.help);
            writeln!(shown, "  {}: {help}", style.strong("help"))
                .expect("a string takes all that is written");
        }
    }
    shown
}

/// The word that stands for a value on the wire.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "?".to_owned(),
    }
}

/// A number of things.
pub(crate) fn plural(count: u64, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

/// A time span to about two digits: `850ms`, `12s`, `3m 5s`, `2h 1m`, `4d 3h`.
fn span(milliseconds: u64) -> String {
    let seconds = Duration::from_millis(milliseconds).as_secs();
    match seconds {
        0 => format!("{milliseconds}ms"),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A number of bytes with a binary unit: `512 B`, `1.5 KiB`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let exponent = ((bytes.ilog2() / 10) as usize).min(UNITS.len());
    let tenths = (u128::from(bytes) * 10) >> (10 * exponent);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[exponent - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_read_well() {
        let spans = [(0, "0ms"), (999, "999ms"), (1000, "1s"), (61_000, "1m 1s"), (7_260_000, "2h 1m")];
        for (milliseconds, shown) in spans {
            assert_eq!(span(milliseconds), shown);
        }
        assert_eq!(span(u64::MAX).chars().last(), Some('h'));
        let sizes =
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB")];
        for (bytes, shown) in sizes {
            assert_eq!(size(bytes), shown);
        }
        assert_eq!(size(u64::MAX), "16383.9 PiB");
    }

    #[test]
    fn columns_align_and_lines_end_without_blanks() {
        let mut grid = Grid::new(Style::default(), &["NAME", "COUNT"], &[1]);
        grid.row(vec![plain("a"), plain(5)]);
        grid.row(vec![plain("longer\u{1b}"), (String::new(), Tone::Bad)]);
        assert_eq!(grid.finish("none"), "NAME        COUNT\na               5\nlonger\\x1b\n");
        assert_eq!(Grid::new(Style::default(), &["NAME"], &[]).finish("none"), "none\n");
    }

    #[test]
    fn colour_is_used_only_where_it_is_welcome() {
        assert_eq!(Style::default().bad("x"), "x");
        assert_eq!(Style { terminal: true, colour: true }.bad("x"), "\u{1b}[31mx\u{1b}[0m");
    }
}
