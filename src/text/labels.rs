//! Option letters.

/// The letter of place `index`; `?` beyond Z, which [`super::Question`] rules out.
pub(crate) fn letter(index: usize) -> char {
    u8::try_from(index).ok().filter(|&i| i < 26).map_or('?', |i| char::from(b'A' + i))
}

/// The place that a letter of either case names.
pub(crate) fn index(letter: char) -> Option<usize> {
    letter.is_ascii_alphabetic().then(|| usize::from(letter.to_ascii_uppercase() as u8 - b'A'))
}

/// Options with their letters, `A. x`.
pub(crate) fn listed(options: &[String]) -> Vec<String> {
    options.iter().enumerate().map(|(at, option)| format!("{}. {option}", letter(at))).collect()
}

/// A label at the start of `text` and what follows it: `A. x`, `A) x`, `A: x`, `(A) x`, `A.` alone. The delimiter is
/// required, so that the article in `A red car` is no label, and so is space or the end after it (`A.M.` is a word).
pub(super) fn leading(text: &str) -> Option<(usize, &str)> {
    let text = text.trim_start();
    let (body, closers): (&str, &[char]) = match text.strip_prefix('(') {
        Some(rest) => (rest, &[')']),
        None => (text, &['.', ')', ':']),
    };
    let place = index(body.chars().next()?)?;
    let rest = body[1..].strip_prefix(closers)?;
    (rest.is_empty() || rest.starts_with(char::is_whitespace)).then(|| (place, rest.trim()))
}
