//! Splits text into the pieces that merges never cross.
//!
//! The project's own pattern has a hand-written splitter; every other pattern goes through `fancy-regex`. Both see the
//! Unicode tables of `regex-syntax`.

use std::sync::OnceLock;

/// The pattern that `split_gpt4_style` implements.
pub const GPT4_STYLE: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}",
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
);

const OTHER: u8 = 0;
const LETTER: u8 = 1;
const NUMBER: u8 = 2;
const SPACE: u8 = 3;

/// One byte of class for every code point; 1.1 MB, built once.
fn classes() -> &'static [u8] {
    static CLASSES: OnceLock<Vec<u8>> = OnceLock::new();
    CLASSES.get_or_init(|| {
        let mut table = vec![OTHER; 0x11_0000];
        for (pattern, class) in [(r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)] {
            let parsed = regex_syntax::parse(pattern).expect("a Unicode class");
            let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(ranges)) = parsed.kind() else {
                unreachable!("{pattern} is a Unicode class")
            };
            for range in ranges.ranges() {
                table[range.start() as usize..=range.end() as usize].fill(class);
            }
        }
        table
    })
}

/// Decodes the character at `at`; returns it with its length in bytes.
#[inline(always)]
fn decode(bytes: &[u8], at: usize) -> (u32, usize) {
    let first = bytes[at] as u32;
    let tail = |i: usize| (bytes[at + i] & 0x3f) as u32;
    match first {
        0..=0x7f => (first, 1),
        0x80..=0xdf => ((first & 0x1f) << 6 | tail(1), 2),
        0xe0..=0xef => ((first & 0x0f) << 12 | tail(1) << 6 | tail(2), 3),
        _ => ((first & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3), 4),
    }
}

/// A view of a text that knows the class of each character.
struct Scanner<'a> {
    bytes: &'a [u8],
    classes: &'static [u8],
}

impl Scanner<'_> {
    /// Class and length of the character at `at`; None at the end.
    #[inline(always)]
    fn class(&self, at: usize) -> Option<(u8, usize)> {
        if at >= self.bytes.len() {
            return None;
        }
        let (character, length) = decode(self.bytes, at);
        Some((self.classes[character as usize], length))
    }

    /// The end of the run of characters of `class` that starts at `at`.
    #[inline(always)]
    fn run(&self, mut at: usize, class: u8) -> usize {
        while let Some((found, length)) = self.class(at) {
            if found != class {
                break;
            }
            at += length;
        }
        at
    }

    /// The end of `'(?i:[sdmt]|ll|ve|re)` where it matches at the apostrophe at `at`.
    fn contraction(&self, at: usize) -> Option<usize> {
        let rest = &self.bytes[at + 1..];
        // U+017F, the long s, folds to s.
        if rest.starts_with("\u{17f}".as_bytes()) {
            return Some(at + 3);
        }
        match rest.first()?.to_ascii_lowercase() {
            b's' | b'd' | b'm' | b't' => return Some(at + 2),
            _ => {}
        }
        let pair = [rest.first()?.to_ascii_lowercase(), rest.get(1)?.to_ascii_lowercase()];
        matches!(&pair, b"ll" | b"ve" | b"re").then_some(at + 3)
    }

    /// The end of a run of punctuation at `at`, with the line breaks after it.
    fn punctuation(&self, at: usize) -> usize {
        let mut end = self.run(at, OTHER);
        while matches!(self.bytes.get(end), Some(b'\r' | b'\n')) {
            end += 1;
        }
        end
    }

    /// The end of the whitespace piece at `at`: up to the last line break of the run, or all but the run's last
    /// character where something else follows.
    fn whitespace(&self, at: usize) -> usize {
        let end = self.run(at, SPACE);
        let run = &self.bytes[at..end];
        if let Some(last_break) = run.iter().rposition(|byte| matches!(byte, b'\r' | b'\n')) {
            return at + last_break + 1;
        }
        if end == self.bytes.len() {
            return end;
        }
        let last = run.iter().rposition(|byte| byte & 0xc0 != 0x80).unwrap_or(0);
        if last == 0 {
            end
        } else {
            at + last
        }
    }

    /// The end of the piece that starts at `at`, which is before the end of the text.
    #[inline(always)]
    fn piece(&self, at: usize) -> usize {
        let (class, length) = self.class(at).expect("before the end");
        match class {
            LETTER => self.run(at, LETTER),
            NUMBER => match self.class(at + length) {
                Some((NUMBER, second)) => at + length + second,
                _ => at + length,
            },
            _ => {
                let byte = self.bytes[at];
                if byte == b'\'' {
                    if let Some(end) = self.contraction(at) {
                        return end;
                    }
                }
                let next = self.class(at + length).map(|(class, _)| class);
                if next == Some(LETTER) && byte != b'\r' && byte != b'\n' {
                    return self.run(at + length, LETTER);
                }
                if class == OTHER {
                    return self.punctuation(at);
                }
                if byte == b' ' && next == Some(OTHER) {
                    return self.punctuation(at + 1);
                }
                self.whitespace(at)
            }
        }
    }
}

/// Calls `take` with each piece of `text` under `GPT4_STYLE`, in order; the pieces cover the text.
pub fn split_gpt4_style<'a>(text: &'a str, mut take: impl FnMut(&'a str)) {
    let scanner = Scanner { bytes: text.as_bytes(), classes: classes() };
    let mut at = 0;
    while at < text.len() {
        let end = scanner.piece(at);
        take(&text[at..end]);
        at = end;
    }
}

/// A way to split: by hand for the project's own pattern, by regex for any other.
pub enum Splitter {
    Gpt4Style,
    Regex(Box<fancy_regex::Regex>),
}

impl Splitter {
    /// Fails with a sentence where the pattern is not a regular expression.
    pub fn new(pattern: &str) -> Result<Self, String> {
        if pattern == GPT4_STYLE {
            return Ok(Splitter::Gpt4Style);
        }
        match fancy_regex::Regex::new(pattern) {
            Ok(regex) => Ok(Splitter::Regex(Box::new(regex))),
            Err(error) => Err(format!("pattern is not a regular expression: {error}")),
        }
    }

    /// Calls `take` with each match; text between matches is left out, as in `re.findall`.
    pub fn split<'a>(&self, text: &'a str, mut take: impl FnMut(&'a str)) -> Result<(), String> {
        match self {
            Splitter::Gpt4Style => split_gpt4_style(text, take),
            Splitter::Regex(regex) => {
                for found in regex.find_iter(text) {
                    take(found.map_err(|error| format!("pattern failed on the text: {error}"))?.as_str());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(splitter: &Splitter, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        splitter.split(text, |piece| found.push(piece.to_string())).unwrap();
        found
    }

    #[test]
    fn the_hand_written_splitter_equals_the_regex() {
        let by_hand = Splitter::new(GPT4_STYLE).unwrap();
        let by_regex = Splitter::Regex(Box::new(fancy_regex::Regex::new(GPT4_STYLE).unwrap()));
        assert!(matches!(by_hand, Splitter::Gpt4Style));
        let alphabet: Vec<char> =
            "aZé字ſ'sSlLvVeErRtT 19٣Ⅷ \t\n\r\u{a0}\u{2003}\u{85}.,!-\"\u{301}😀".chars().collect();
        let mut state = 1u64; // a linear congruential generator is random enough to reach every pair of classes
        let mut next = |bound: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % bound
        };
        for _ in 0..20_000 {
            let text: String = (0..next(12)).map(|_| alphabet[next(alphabet.len())]).collect();
            assert_eq!(pieces(&by_hand, &text), pieces(&by_regex, &text), "{text:?}");
        }
    }

    #[test]
    fn an_invalid_pattern_is_a_sentence() {
        assert!(Splitter::new("(").err().unwrap().contains("not a regular expression"));
    }
}
