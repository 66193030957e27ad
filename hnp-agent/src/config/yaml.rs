//! YAML text -> a tree in which every node knows its line and column.
//!
//! Built on the parser's events and not on a ready-made document, because a configuration with
//! duplicate keys must be reported with everything else that is wrong, and because scalars stay
//! text: `off`, `1e3` or `0x10` mean what the reader of that key says, not what YAML guesses.
//! Anchors, aliases and tags are mistakes: a configuration says what it means, and cannot grow.

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use super::error::Mistake;

/// Deeper than any key goes (`routes[0].timeouts.head` is 4).
const MAX_DEPTH: usize = 16;

/// A place in the file, both counted from 1.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Mark {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// One node of the tree.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) mark: Mark,
    pub(super) kind: Kind,
}

/// What a node is.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Text, and whether it stood there without quotes.
    Scalar { text: String, plain: bool },
    /// Keys and values, in the order of the file, repeated keys included.
    Map(Vec<(Node, Node)>),
    /// A sequence.
    List(Vec<Node>),
}

impl Node {
    /// Nothing was written: `key:` or `key: null`.
    pub(super) fn is_null(&self) -> bool {
        match &self.kind {
            Kind::Scalar { text, plain } => *plain && matches!(text.as_str(), "" | "~" | "null"),
            Kind::Map(_) | Kind::List(_) => false,
        }
    }
}

/// The one document of `text`; `None` when there is nothing in it.
///
/// # Errors
/// The first place where the text is no YAML, or uses a part of YAML that is not used here.
pub(super) fn tree(text: &str) -> Result<Option<Node>, Mistake> {
    let mut open: Vec<Open> = Vec::new();
    let mut root: Option<Node> = None;
    for event in Parser::new_from_str(text) {
        let (event, span) = event
            .map_err(|error| mistake(mark(error.marker()), format!("is not YAML here: {}", error.info())))?;
        let at = mark(&span.start);
        let done = match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => None,
            Event::DocumentStart(_) if root.is_some() => {
                return Err(mistake(at, "a second document begins; allowed: one".into()));
            }
            Event::DocumentStart(_) => None,
            Event::Alias(_) => return Err(unused(at, "an alias")),
            Event::Scalar(_, _, anchor, tag) if anchor != 0 || tag.is_some() => {
                return Err(unused(at, "an anchor or a tag"));
            }
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag)
                if anchor != 0 || tag.is_some() =>
            {
                return Err(unused(at, "an anchor or a tag"));
            }
            Event::Scalar(text, style, _, _) => {
                let plain = style == ScalarStyle::Plain;
                Some(Node { mark: at, kind: Kind::Scalar { text: text.into_owned(), plain } })
            }
            Event::SequenceStart(..) => {
                open.push(Open { mark: at, what: Building::List(Vec::new()) });
                None
            }
            Event::MappingStart(..) => {
                open.push(Open { mark: at, what: Building::Map(Vec::new(), None) });
                None
            }
            Event::SequenceEnd | Event::MappingEnd => open.pop().map(Open::finish),
        };
        if open.len() > MAX_DEPTH {
            return Err(mistake(at, format!("is nested deeper than {MAX_DEPTH} levels")));
        }
        let Some(node) = done else { continue };
        match open.last_mut() {
            Some(parent) => parent.add(node),
            None => root = Some(node),
        }
    }
    Ok(root)
}

/// A collection whose end was not read yet.
struct Open {
    mark: Mark,
    what: Building,
}

enum Building {
    List(Vec<Node>),
    Map(Vec<(Node, Node)>, Option<Node>),
}

impl Open {
    fn add(&mut self, node: Node) {
        match &mut self.what {
            Building::List(items) => items.push(node),
            Building::Map(entries, key) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => *key = Some(node),
            },
        }
    }

    fn finish(self) -> Node {
        let kind = match self.what {
            Building::List(items) => Kind::List(items),
            Building::Map(entries, _) => Kind::Map(entries),
        };
        Node { mark: self.mark, kind }
    }
}

fn mark(marker: &Marker) -> Mark {
    Mark { line: marker.line().max(1), column: marker.col() + 1 }
}

fn mistake(at: Mark, what: String) -> Mistake {
    Mistake { line: at.line, column: at.column, key: String::new(), what }
}

fn unused(at: Mark, what: &str) -> Mistake {
    mistake(at, format!("{what} is not used here; allowed: plain mappings, lists and values"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_from_one_and_duplicates_stay() {
        let root = tree("a: 1\nb:\n  - x\n  - \"y\"\na: 2\n").unwrap().unwrap();
        let Kind::Map(entries) = root.kind else { panic!("{root:?}") };
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[2].0.mark, Mark { line: 5, column: 1 });
        assert_eq!(entries[2].1.mark, Mark { line: 5, column: 4 });
        let Kind::List(items) = &entries[1].1.kind else { panic!("{entries:?}") };
        assert_eq!(items[1].mark, Mark { line: 4, column: 5 });
        assert!(matches!(&items[1].kind, Kind::Scalar { text, plain: false } if text == "y"));
    }

    #[test]
    fn nothing_is_nothing() {
        for text in ["", "\n", "# only a comment\n"] {
            assert!(tree(text).unwrap().is_none_or(|node| node.is_null()), "{text:?}");
        }
    }

    #[test]
    fn what_could_surprise_is_refused_with_its_place() {
        for (text, line) in [
            ("a: &x 1\nb: *x\n", 1),
            ("a: 1\nb: !!str 2\n", 2),
            ("a: 1\n---\nb: 2\n", 2),
            ("a: [1, 2\n", 2),
            ("a: 1\n\tb: 2\n", 1),
        ] {
            let mistake = tree(text).unwrap_err();
            assert_eq!(mistake.line, line, "{text:?}: {mistake}");
        }
        let deep = "[".repeat(40);
        assert!(tree(&deep).unwrap_err().what.contains("nested"));
    }
}
