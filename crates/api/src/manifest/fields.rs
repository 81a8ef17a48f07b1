// SPDX-License-Identifier: Apache-2.0
//! Reading typed fields out of a tree, every mistake noted with its path and place.
//!
//! A reader returns `None` for what is wrong and has noted why; nothing is noted twice.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use super::tree::{At, Entry, Node, Value};
use crate::Diagnostic;

/// Most diagnostics that one load reports. Whoever made more mistakes fixes these first.
const DIAGNOSTICS_MAX: usize = 1000;

/// Longest piece of an operator's text that a diagnostic repeats, in characters.
const QUOTE_CHARS_MAX: usize = 80;

/// What a load has found wrong so far.
#[derive(Debug, Default)]
pub(super) struct Report(RefCell<Vec<Diagnostic>>);

impl Report {
    /// Notes a mistake at a place.
    pub(super) fn note(&self, place: &Place<'_>, reason: String, help: String) {
        let mut diagnostics = self.0.borrow_mut();
        if diagnostics.len() < DIAGNOSTICS_MAX {
            diagnostics.push(place.diagnostic(reason, help));
        }
    }

    /// Whether nothing was noted.
    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// All that was noted, in the order of files and lines.
    pub(super) fn into_diagnostics(self) -> Vec<Diagnostic> {
        let mut diagnostics = self.0.into_inner();
        diagnostics.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        diagnostics
    }
}

/// Where something is written.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    pub(super) file: &'a Path,
    pub(super) at: At,
    /// Dotted path of the field.
    pub(super) field: String,
}

impl Place<'_> {
    /// What is wrong here.
    pub(super) fn diagnostic(&self, reason: String, help: String) -> Diagnostic {
        Diagnostic {
            file: self.file.to_owned(),
            line: self.at.line,
            column: self.at.column,
            field: printable(&self.field),
            reason: printable(&reason),
            help: printable(&help),
        }
    }
}

impl Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.at.line, self.at.column)
    }
}

/// A value within a document.
#[derive(Clone, Debug)]
pub(super) struct Field<'a> {
    report: &'a Report,
    node: &'a Node,
    pub(super) place: Place<'a>,
}

impl<'a> Field<'a> {
    /// The root of a document.
    pub(super) fn root(report: &'a Report, file: &'a Path, node: &'a Node) -> Self {
        Self { report, node, place: Place { file, at: node.at, field: String::new() } }
    }

    /// Notes that the value is wrong. Always `None`, so that readers can end with it.
    pub(super) fn refuse<T>(&self, reason: impl Display, help: impl Display) -> Option<T> {
        self.report.note(&self.place, reason.to_string(), help.to_string());
        None
    }

    fn refuse_kind<T>(&self, expected: &str) -> Option<T> {
        let help = match self.node.value {
            Value::Bool(_) | Value::Integer(_) | Value::Float if expected == "text" => {
                "put the value in quotes"
            }
            _ => "",
        };
        self.refuse(format!("expected {expected}, found {}", self.node.value.kind()), help)
    }

    /// The value as text.
    pub(super) fn text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            _ => self.refuse_kind("text"),
        }
    }

    /// The value as what its text parses into; the parser's own words say what is wrong with it.
    pub(super) fn parse<T: FromStr<Err: Display>>(&self) -> Option<T> {
        match self.text()?.parse() {
            Ok(value) => Some(value),
            Err(error) => self.refuse(error, ""),
        }
    }

    /// The value as one of a few words.
    pub(super) fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).or_else(|| {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.refuse(format!("`{}` is not known here", quote(text)), format!("use {}", known.join(" or ")))
        })
    }

    /// The value as a whole number within bounds.
    pub(super) fn integer<T: TryFrom<i128> + Copy + Into<i128>>(
        &self,
        range: RangeInclusive<T>,
    ) -> Option<T> {
        let Value::Integer(number) = self.node.value else {
            return self.refuse_kind("a whole number");
        };
        let (low, high): (i128, i128) = ((*range.start()).into(), (*range.end()).into());
        T::try_from(number)
            .ok()
            .filter(|_| (low..=high).contains(&number))
            .or_else(|| self.refuse(format!("{number} is out of range"), format!("use {low} to {high}")))
    }

    /// The value as true or false.
    pub(super) fn boolean(&self) -> Option<bool> {
        match self.node.value {
            Value::Bool(value) => Some(value),
            _ => self.refuse_kind("true or false"),
        }
    }

    /// The value as a list of at most `max` items.
    pub(super) fn items(&self, max: usize) -> Option<Vec<Self>> {
        let Value::List(nodes) = &self.node.value else { return self.refuse_kind("a list") };
        if nodes.len() > max {
            return self.refuse(format!("{} items are too many", nodes.len()), format!("use at most {max}"));
        }
        let item = |(index, node): (usize, &'a Node)| {
            let field = format!("{}[{index}]", self.place.field);
            Self { node, place: Place { at: node.at, field, ..self.place }, report: self.report }
        };
        Some(nodes.iter().enumerate().map(item).collect())
    }

    /// The value as pairs of arbitrary keys, at most `max`, with duplicates refused.
    pub(super) fn pairs(&self, max: usize) -> Option<Vec<(&'a str, Self)>> {
        let entries = self.entries()?;
        if entries.len() > max {
            return self
                .refuse(format!("{} entries are too many", entries.len()), format!("use at most {max}"));
        }
        Some(entries.iter().map(|entry| (entry.key.as_str(), self.child(entry))).collect())
    }

    /// The value as a map of known fields.
    pub(super) fn fields(&self) -> Option<Fields<'a>> {
        let entries = self.entries()?;
        Some(Fields { owner: self.clone(), entries, known: Vec::new() })
    }

    /// The value's pairs. Repeated keys are noted, and their first value counts.
    fn entries(&self) -> Option<&'a [Entry]> {
        let Value::Map(entries) = &self.node.value else { return self.refuse_kind("a map") };
        let mut seen = HashSet::new();
        for entry in entries {
            if !seen.insert(&entry.key) {
                let place = Place { at: entry.at, ..self.child(entry).place };
                self.report.note(&place, format!("`{}` is given twice", quote(&entry.key)), String::new());
            }
        }
        Some(entries)
    }

    fn child(&self, entry: &'a Entry) -> Self {
        let dot = if self.place.field.is_empty() { "" } else { "." };
        let field = format!("{}{dot}{}", self.place.field, quote(&entry.key));
        Self {
            node: &entry.node,
            place: Place { at: entry.node.at, field, ..self.place },
            report: self.report,
        }
    }
}

/// The fields of a map while they are read. Whatever was not asked for is unknown.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    owner: Field<'a>,
    entries: &'a [Entry],
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The field of that name, if it is given.
    pub(super) fn optional(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.known.push(key);
        self.entries.iter().find(|entry| entry.key == key).map(|entry| self.owner.child(entry))
    }

    /// The field of that name; its absence is noted.
    pub(super) fn required(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.optional(key).or_else(|| self.owner.refuse(format!("field `{key}` is missing"), ""))
    }

    /// Notes every field that nobody asked for.
    pub(super) fn finish(self) {
        for entry in self.entries.iter().filter(|entry| !self.known.contains(&entry.key.as_str())) {
            let place = Place { at: entry.at, ..self.owner.child(entry).place };
            let help = match self.known.as_slice() {
                [] => String::new(),
                known => format!("known here: {}", known.join(", ")),
            };
            self.owner.report.note(&place, format!("unknown field `{}`", quote(&entry.key)), help);
        }
    }

    /// The names of the given fields among `keys`.
    pub(super) fn given(&self, keys: &[&'static str]) -> Vec<&'static str> {
        let given = |key: &&'static str| self.entries.iter().any(|entry| entry.key == **key);
        keys.iter().copied().filter(given).collect()
    }

    /// The map itself.
    pub(super) fn owner(&self) -> &Field<'a> {
        &self.owner
    }
}

/// An operator's text, cut to be repeated in a message.
pub(super) fn quote(text: &str) -> &str {
    text.char_indices().nth(QUOTE_CHARS_MAX).map_or(text, |(end, _)| &text[..end])
}

/// A message without control characters: it may quote a file that somebody else wrote.
fn printable(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
