//! Takes typed values out of the tree and collects mistakes instead of stopping at the first one.
//!
//! A reader that fails notes the mistake and answers with something of the right type, so that the
//! rest is read too; the Plan is thrown away if anything was noted.

use std::fmt::Display;

use super::error::Mistake;
use super::values::{Wrong, nearest};
use super::yaml::{Kind, Mark, Node};

/// Collects mistakes and warnings of one file.
#[derive(Debug, Default)]
pub(super) struct Reader {
    mistakes: Vec<Mistake>,
    warnings: Vec<Mistake>,
}

/// A mapping whose keys were checked. Missing mappings are empty ones.
#[derive(Clone, Debug)]
pub(super) struct Section<'a> {
    /// Where it begins.
    pub(super) mark: Mark,
    /// Its key from the top, such as `routes[0].timeouts`.
    pub(super) path: String,
    entries: Vec<(&'a str, &'a Node)>,
}

impl<'a> Section<'a> {
    /// One in which nothing was written.
    pub(super) fn empty(mark: Mark, path: &str) -> Self {
        Self { mark, path: path.to_owned(), entries: Vec::new() }
    }

    /// The key of one of its entries from the top.
    pub(super) fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value of a key that was written and is not null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Node> {
        self.entries
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, node)| *node)
            .filter(|node| !node.is_null())
    }

    /// Where the value of `key` stands, or else where the section begins.
    pub(super) fn mark_of(&self, key: &str) -> Mark {
        self.get(key).map_or(self.mark, |node| node.mark)
    }

    /// Keys and values in the order of the file.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Node)> {
        self.entries.iter().copied()
    }
}

impl Reader {
    /// Notes a mistake.
    pub(super) fn mistake(&mut self, mark: Mark, key: impl Into<String>, what: impl Display) {
        let what = what.to_string();
        self.mistakes.push(Mistake { line: mark.line, column: mark.column, key: key.into(), what });
    }

    /// Notes something that is allowed and still looks wrong.
    pub(super) fn warning(&mut self, mark: Mark, key: impl Into<String>, what: impl Display) {
        let what = what.to_string();
        self.warnings.push(Mistake { line: mark.line, column: mark.column, key: key.into(), what });
    }

    /// Warnings when there were no mistakes, else the mistakes; both in the order of the file.
    pub(super) fn finish(mut self) -> Result<Vec<Mistake>, Vec<Mistake>> {
        let order = |mistake: &Mistake| (mistake.line, mistake.column);
        self.mistakes.sort_by_key(order);
        self.warnings.sort_by_key(order);
        if self.mistakes.is_empty() { Ok(self.warnings) } else { Err(self.mistakes) }
    }

    /// A mapping with a fixed set of keys.
    pub(super) fn section<'a>(&mut self, parent: &Section<'a>, key: &str, keys: &[&str]) -> Section<'a> {
        let path = parent.key(key);
        match parent.get(key) {
            Some(node) => self.known(node, path, keys),
            None => Section { mark: parent.mark, path, entries: Vec::new() },
        }
    }

    /// A mapping with a fixed set of keys, from a node at hand.
    pub(super) fn known<'a>(&mut self, node: &'a Node, path: String, keys: &[&str]) -> Section<'a> {
        let mut section = self.named(node, path);
        section.entries.retain(|(key, value)| {
            let known = keys.contains(key);
            if !known {
                let hint = match nearest(key, keys) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("allowed: {}", keys.join(", ")),
                };
                let path = &section.path;
                let full = if path.is_empty() { (*key).to_owned() } else { format!("{path}.{key}") };
                self.mistake(key_mark(node, key, value), full, format!("is not a key; {hint}"));
            }
            known
        });
        section
    }

    /// A mapping whose keys are names. Repeated keys are mistakes.
    pub(super) fn named<'a>(&mut self, node: &'a Node, path: String) -> Section<'a> {
        let mut section = Section { mark: node.mark, path, entries: Vec::new() };
        let Kind::Map(entries) = &node.kind else {
            if !node.is_null() {
                self.mistake(
                    node.mark,
                    section.path.clone(),
                    format!("is {}; allowed: a mapping", shape(node)),
                );
            }
            return section;
        };
        for (key, value) in entries {
            let Kind::Scalar { text, .. } = &key.kind else {
                self.mistake(
                    key.mark,
                    section.path.clone(),
                    format!("{} stands as a key; allowed: a word", shape(key)),
                );
                continue;
            };
            if section.entries.iter().any(|(earlier, _)| earlier == text) {
                self.mistake(key.mark, section.key(text), "is written twice; allowed: once");
            } else {
                section.entries.push((text, value));
            }
        }
        section
    }

    /// The items of a list; a missing list is empty.
    pub(super) fn list<'a>(&mut self, section: &Section<'a>, key: &str) -> &'a [Node] {
        let Some(node) = section.get(key) else { return &[] };
        match &node.kind {
            Kind::List(items) => items,
            Kind::Scalar { .. } | Kind::Map(_) => {
                self.mistake(node.mark, section.key(key), format!("is {}; allowed: a list", shape(node)));
                &[]
            }
        }
    }

    /// The text of a node.
    pub(super) fn text<'a>(&mut self, node: &'a Node, key: &str) -> Option<&'a str> {
        match &node.kind {
            Kind::Scalar { text, .. } if !node.is_null() => Some(text),
            Kind::Scalar { .. } | Kind::Map(_) | Kind::List(_) => {
                self.mistake(node.mark, key, format!("is {}; allowed: a single value", shape(node)));
                None
            }
        }
    }

    /// A value that `parse` reads, if it was written; mistakes are noted.
    pub(super) fn optional<T>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Option<T> {
        let node = section.get(key)?;
        self.item(node, &section.key(key), parse)
    }

    /// A value from a node at hand.
    pub(super) fn item<T>(
        &mut self,
        node: &Node,
        key: &str,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Option<T> {
        let text = self.text(node, key)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(wrong) => {
                self.mistake(node.mark, key, wrong);
                None
            }
        }
    }

    /// A value, or its default when nothing was written.
    pub(super) fn or<T>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        default: T,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> T {
        self.optional(section, key, parse).unwrap_or(default)
    }

    /// A value that must be there.
    pub(super) fn required<T>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        allowed: &str,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Option<T> {
        if section.get(key).is_none() {
            self.mistake(section.mark_of(key), section.key(key), format!("is missing; allowed: {allowed}"));
            return None;
        }
        self.optional(section, key, parse)
    }
}

/// Where a key itself stands: its value may be on another line.
fn key_mark(map: &Node, key: &str, value: &Node) -> Mark {
    let Kind::Map(entries) = &map.kind else { return value.mark };
    entries
        .iter()
        .find(|(node, _)| matches!(&node.kind, Kind::Scalar { text, .. } if text == key))
        .map_or(value.mark, |(node, _)| node.mark)
}

fn shape(node: &Node) -> &'static str {
    match &node.kind {
        Kind::Scalar { .. } if node.is_null() => "empty",
        Kind::Scalar { .. } => "a single value",
        Kind::Map(_) => "a mapping",
        Kind::List(_) => "a list",
    }
}
