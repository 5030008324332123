//! Splits Rust source into code and comments, each with the other blanked out.
//!
//! Both halves keep the length and the line breaks of the text, so that a position means the same in all three.
//! String and character literals are blank in both: neither a brace nor a word inside one counts. This is a
//! scanner for checks, not a parser; it knows nested comments, raw strings and lifetimes, nothing more.

/// A text and its two halves.
#[derive(Debug)]
pub(crate) struct Source {
    /// Code with comments and literals blanked.
    pub(crate) code: String,
    /// Comments with everything else blanked.
    pub(crate) comments: String,
}

impl Source {
    /// Scans a text once.
    pub(crate) fn new(text: &str) -> Self {
        Scanner {
            rest: text,
            code: String::with_capacity(text.len()),
            comments: String::new(),
        }
        .run()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Code,
    Comment,
    Literal,
}

struct Scanner<'a> {
    rest: &'a str,
    code: String,
    comments: String,
}

impl Scanner<'_> {
    fn run(mut self) -> Source {
        while !self.rest.is_empty() {
            let (part, length) = self.next_part();
            self.take(part, length);
        }
        Source {
            code: self.code,
            comments: self.comments,
        }
    }

    fn next_part(&self) -> (Part, usize) {
        let rest = self.rest;
        if rest.starts_with("//") {
            return (Part::Comment, rest.find('\n').unwrap_or(rest.len()));
        }
        if rest.starts_with("/*") {
            return (Part::Comment, block_comment(rest));
        }
        let after_word = self
            .code
            .ends_with(|c: char| c.is_alphanumeric() || c == '_');
        if !after_word && let Some(length) = raw_string(rest) {
            return (Part::Literal, length);
        }
        if rest.starts_with('"') {
            return (Part::Literal, quoted(rest, '"'));
        }
        if let Some(length) = character(rest) {
            return (Part::Literal, length);
        }
        (Part::Code, rest.chars().next().map_or(1, char::len_utf8))
    }

    fn take(&mut self, part: Part, length: usize) {
        let (taken, rest) = self.rest.split_at(length);
        for character in taken.chars() {
            for (half, own) in [
                (&mut self.code, Part::Code),
                (&mut self.comments, Part::Comment),
            ] {
                if part == own || character == '\n' {
                    half.push(character);
                } else {
                    half.extend(std::iter::repeat_n(' ', character.len_utf8()));
                }
            }
        }
        self.rest = rest;
    }
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let bytes = text.as_bytes();
    let mut at = 0;
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

fn raw_string(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "r"]
        .into_iter()
        .find(|prefix| text.starts_with(prefix))?;
    let after = &text[prefix.len()..];
    let hashes = after.len() - after.trim_start_matches('#').len();
    if !after[hashes..].starts_with('"') {
        return None;
    }
    let start = prefix.len() + hashes + 1;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(
        text[start..]
            .find(&end)
            .map_or(text.len(), |at| start + at + end.len()),
    )
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// A character literal, as against a lifetime: it has its closing quote after one character or one escape.
fn character(text: &str) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    if body.starts_with('\\') {
        return Some(quoted(text, '\''));
    }
    let first = body.chars().next()?.len_utf8();
    body[first..].starts_with('\'').then_some(first + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, code: &str, comments: &str) {
        let source = Source::new(text);
        assert_eq!(source.code.len(), text.len(), "{text}");
        assert_eq!(source.comments.len(), text.len(), "{text}");
        assert_eq!(
            source.code.split_whitespace().collect::<Vec<_>>().join(" "),
            code
        );
        assert_eq!(
            source
                .comments
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
            comments
        );
    }

    #[test]
    fn keeps_code_and_comments_apart_and_blanks_literals() {
        check("a // b {\nc", "a c", "// b {");
        check("a /* b /* c */ d */ e", "a e", "/* b /* c */ d */");
        check(r#"a("{ // }") b"#, "a( ) b", "");
        check(r##"a(r#"{ " }"#) b"##, "a( ) b", "");
        check(r"a('{', '\'', '\u{7b}') b", "a( , , ) b", "");
        check("fn a<'x>(b: &'x str) {}", "fn a<'x>(b: &'x str) {}", "");
        check("\"é { \" é // ü", "é", "// ü");
        check("for\"{\" her\"{\"", "for her", "");
    }
}
