// SPDX-License-Identifier: Apache-2.0
//! Text from elsewhere made fit for a terminal.
//!
//! A guest names its processes as it likes, and a terminal obeys escape sequences: printed raw, such
//! a name could forge output, or worse. Control characters are shown as escapes, and so are the
//! invisible ones that reorder or hide what stands around them (Unicode TR 36, section 2).

use std::fmt::Write;

/// Longest value shown, in characters; the rest is cut with an ellipsis.
const VALUE_CHARS_MAX: usize = 256;

/// Longest sentence shown, in characters, likewise.
const SENTENCE_CHARS_MAX: usize = 4096;

/// A value, such as a name or a path, as a terminal may see it.
pub(crate) fn visible(text: &str) -> String {
    escaped(text, VALUE_CHARS_MAX)
}

/// A sentence, such as an error or a reason, as a terminal may see it.
pub(crate) fn visible_sentence(text: &str) -> String {
    escaped(text, SENTENCE_CHARS_MAX)
}

/// Backslashes are doubled, so that no escape can be forged.
fn escaped(text: &str, max_chars: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(max_chars));
    for (index, character) in text.chars().enumerate() {
        if index == max_chars {
            shown.push('…');
            break;
        }
        match character {
            '\\' => shown.push_str("\\\\"),
            '\n' => shown.push_str("\\n"),
            '\t' => shown.push_str("\\t"),
            c if is_unfit(c) && c <= '\u{ff}' => {
                write!(shown, "\\x{:02x}", u32::from(c)).expect("a string takes all that is written")
            }
            c if is_unfit(c) => {
                write!(shown, "\\u{{{:x}}}", u32::from(c)).expect("a string takes all that is written");
            }
            c => shown.push(c),
        }
    }
    shown
}

/// A JSON document as a terminal may see it: still the same document. Outside of strings JSON has
/// no character that needs it.
pub(crate) fn visible_json(document: &str) -> String {
    let mut shown = String::with_capacity(document.len());
    for character in document.chars() {
        if is_unfit(character) && character != '\n' {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                write!(shown, "\\u{unit:04x}").expect("a string takes all that is written");
            }
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Whether a character acts on a terminal, or on the text around it, instead of showing itself.
fn is_unfit(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_shown_as_an_escape() {
        for (text, shown) in [
            ("/usr/bin/storefront", "/usr/bin/storefront"),
            ("größe 日本", "größe 日本"),
            ("\u{1b}[2Jx", "\\x1b[2Jx"),
            ("a\u{9b}31mb", "a\\x9b31mb"),
            ("two\nlines\tand\r", "two\\nlines\\tand\\x0d"),
            ("\\x1b", "\\\\x1b"),
            ("exe\u{202e}gpj", "exe\\u{202e}gpj"),
            ("\u{e0041}", "\\u{e0041}"),
            ("\u{7f}\0", "\\x7f\\x00"),
        ] {
            assert_eq!(visible(text), shown);
        }
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(visible(&"x".repeat(1 << 20)).chars().count(), VALUE_CHARS_MAX + 1);
        assert_eq!(visible(&"x".repeat(VALUE_CHARS_MAX)).chars().count(), VALUE_CHARS_MAX);
    }

    #[test]
    fn json_stays_the_same_document() {
        let value = serde_json::json!({"name": "\u{1b}[2J\u{9b}\u{202e}\u{e0041}\u{7f}\n\\"});
        let shown = visible_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!shown.chars().any(|c| is_unfit(c) && c != '\n'));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
