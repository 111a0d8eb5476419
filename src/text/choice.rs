//! Which option a text means. Letters count only where they stand as labels: the article in "A red car" does not.
//! When two readings disagree the answer is none, never a guess.

use std::collections::BTreeSet;

use super::labels;

/// Words that turn what stands near them into its opposite.
const DENIALS: [&str; 9] = ["not", "isn", "wasn", "aren", "never", "neither", "nor", "no", "except"];

/// A run of letters or digits, lower-cased, and where it stands.
struct Word {
    text: String,
    start: usize,
    end: usize,
}

/// The option that `text` names, by letter or by its own words.
pub(super) fn resolve(text: &str, options: &[String]) -> Option<usize> {
    let words = words(text);
    let named = mentions(text, &words, options.len());
    let alone = named.is_empty();
    let whole = |text: &str| letter_alone(text, options.len()).or_else(|| same_words(text, options));
    whole(text)
        .or_else(|| announced(text, &words, options.len()))
        .or_else(|| labelled_line(text, options))
        .or_else(|| text.lines().rfind(|line| !line.trim().is_empty()).and_then(whole))
        .or_else(|| only(named))
        .or_else(|| only(quoted_options(&words, options)))
        .or_else(|| last_letter(text, &words, options.len()).filter(|_| alone))
}

/// A text that is one letter, whatever punctuation or emphasis surrounds it.
pub(super) fn letter_alone(text: &str, options: usize) -> Option<usize> {
    let mut chars = text.trim_matches(|c: char| !c.is_alphanumeric()).chars();
    let letter = chars.next().filter(|_| chars.next().is_none())?;
    labels::index(letter).filter(|&index| index < options)
}

fn words(text: &str) -> Vec<Word> {
    let mut found = Vec::new();
    let mut start = None;
    for (at, c) in text.char_indices().chain([(text.len(), ' ')]) {
        match (c.is_alphanumeric(), start) {
            (true, None) => start = Some(at),
            (false, Some(from)) => {
                found.push(Word { text: text[from..at].to_lowercase(), start: from, end: at });
                start = None;
            }
            _ => {}
        }
    }
    found
}

fn only(found: BTreeSet<usize>) -> Option<usize> {
    found.first().copied().filter(|_| found.len() == 1)
}

/// The one option with exactly the words of `text`.
fn same_words(text: &str, options: &[String]) -> Option<usize> {
    let plain = |text: &str| words(text).into_iter().map(|word| word.text).collect::<Vec<_>>();
    let wanted = plain(text);
    if wanted.is_empty() {
        return None;
    }
    only(
        options
            .iter()
            .enumerate()
            .filter(|(_, option)| plain(option) == wanted)
            .map(|(index, _)| index)
            .collect(),
    )
}

/// "The answer is B", "Answer: (b)": the last one counts, since models correct themselves.
fn announced(text: &str, words: &[Word], options: usize) -> Option<usize> {
    const FILLERS: [&str; 22] = [
        "is",
        "would",
        "be",
        "should",
        "must",
        "the",
        "option",
        "letter",
        "choice",
        "answer",
        "correct",
        "best",
        "final",
        "most",
        "likely",
        "probably",
        "therefore",
        "thus",
        "clearly",
        "to",
        "question",
        "this",
    ];
    let mut last = None;
    for (at, _) in
        words.iter().enumerate().filter(|(_, word)| matches!(word.text.as_str(), "answer" | "choice"))
    {
        for pair in words[at..].windows(2).take(8) {
            let gap = &text[pair[0].end..pair[1].start];
            if gap.contains(['.', '!', '?', ';', '<']) {
                break;
            }
            if let Some(index) = labels_at(text, &pair[1], options) {
                last = Some(index);
            }
            if !FILLERS.contains(&pair[1].text.as_str()) {
                break;
            }
        }
    }
    last
}

/// The place a one-letter word names, when it stands as a label: wrapped, or followed by punctuation or the end, or a
/// capital that is no English word. `A` may also be followed by a reason ("A because …").
fn labels_at(text: &str, word: &Word, options: usize) -> Option<usize> {
    const REASONS: [&str; 8] = ["because", "since", "as", "based", "given", "due", "is", "for"];
    let letter = text[word.start..word.end].chars().next()?;
    let index = labels::index(letter).filter(|&index| word.end - word.start == 1 && index < options)?;
    let after = &text[word.end..];
    let next = after.chars().next();
    if matches!(next, Some('\'' | '’' | '-')) && after.chars().nth(1).is_some_and(char::is_alphanumeric) {
        return None;
    }
    let line_ends = after.lines().next().is_none_or(|line| line.trim().is_empty());
    let followers = words(after.lines().next().unwrap_or_default());
    let follower = followers.first().map(|word| word.text.as_str());
    if matches!(follower, Some("or" | "and")) && followers.get(1).is_some_and(|word| word.text.len() == 1) {
        return None;
    }
    let stands = match next {
        _ if line_ends => true,
        Some(c) if !c.is_whitespace() => true,
        _ if letter.is_lowercase() => false,
        _ if !matches!(letter, 'A' | 'I') => true,
        _ => follower.is_none_or(|word| REASONS.contains(&word)),
    };
    stands.then_some(index)
}

/// "B. blue", "(B) blue", "B blue": the one label at the start of a line, unless several lines carry different ones.
fn labelled_line(text: &str, options: &[String]) -> Option<usize> {
    let label = |line: &str| {
        let line = line.trim().trim_start_matches(['*', '_', '#', '-', ' ']);
        let marked: String = line.chars().filter(|c| !matches!(c, '*' | '_')).collect();
        let by_mark = labels::leading(&marked).map(|(index, _)| index);
        by_mark.or_else(|| {
            let (letter, rest) = marked.split_once(char::is_whitespace)?;
            let index = letter_alone(letter, options.len()).filter(|_| letter.len() == 1)?;
            (same_words(rest, options) == Some(index)).then_some(index)
        })
    };
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if let Some(index) = label(line).or_else(|| letter_alone(line, options.len())) {
            found.insert(index);
            // "(A) or (B)" begins with a label and chooses nothing
            found.extend(mentions(line, &words(line), options.len()));
        }
    }
    only(found).filter(|&index| index < options.len())
}

/// Letters called options, "option B", or put in brackets, "(B)", where they are not called wrong.
fn mentions(text: &str, words: &[Word], options: usize) -> BTreeSet<usize> {
    const AGAINST: [&str; 7] =
        ["incorrect", "wrong", "eliminated", "excluded", "false", "unlikely", "impossible"];
    let mut found = BTreeSet::new();
    for (at, word) in words.iter().enumerate().filter(|(_, word)| word.end - word.start == 1) {
        let letter = text[word.start..].chars().next().unwrap_or_default();
        let Some(index) = labels::index(letter).filter(|&index| index < options) else { continue };
        let called = at > 0
            && matches!(words[at - 1].text.as_str(), "option" | "choice")
            && (letter.is_uppercase() || labels_at(text, word, options).is_some());
        let joined = at > 1
            && matches!(words[at - 1].text.as_str(), "or" | "and")
            && words[at - 2].text.len() == 1
            && words[at - 2].text.chars().next().and_then(labels::index).is_some_and(|i| found.contains(&i));
        let bracketed = letter.is_uppercase()
            && text[word.end..].starts_with(')')
            && text[..word.start]
                .strip_suffix('(')
                .is_some_and(|head| !head.ends_with(char::is_alphanumeric));
        let clause = |next: &&Word| !text[word.end..next.start].contains([',', '.', ';', '\n']);
        let follow = words[at + 1..].iter().take(3).take_while(clause);
        let before = words[at.saturating_sub(3)..at].iter();
        let denied = before.filter(|before| !text[before.end..word.start].contains([',', '.', ';', '\n']));
        let against = |word: &Word| [&AGAINST[..], &DENIALS[..]].concat().contains(&word.text.as_str());
        let refused = follow.chain(denied).any(against);
        if (called || joined || bracketed) && !refused {
            found.insert(index);
        }
    }
    found
}

/// Options whose words occur in a row, not denied just before, and not merely inside a longer option's.
fn quoted_options(found: &[Word], options: &[String]) -> BTreeSet<usize> {
    let mut spans: Vec<(usize, usize, usize)> = Vec::new();
    for (index, option) in options.iter().enumerate() {
        let wanted: Vec<String> = words(option).into_iter().map(|word| word.text).collect();
        if wanted.is_empty() || wanted.len() > found.len() {
            continue;
        }
        // an option that is one letter would match articles and labels
        if wanted.len() == 1 && wanted[0].len() == 1 && wanted[0].chars().all(char::is_alphabetic) {
            continue;
        }
        for start in 0..=found.len() - wanted.len() {
            let here = &found[start..start + wanted.len()];
            let denied =
                found[start.saturating_sub(3)..start].iter().any(|w| DENIALS.contains(&w.text.as_str()));
            if !denied && here.iter().zip(&wanted).all(|(word, wanted)| word.text == *wanted) {
                spans.push((start, start + wanted.len(), index));
            }
        }
    }
    let inside = |a: &(usize, usize, usize), b: &(usize, usize, usize)| {
        b.0 <= a.0 && a.1 <= b.1 && b.1 - b.0 > a.1 - a.0
    };
    let maximal = spans.iter().filter(|span| !spans.iter().any(|other| inside(span, other)));
    maximal.map(|&(_, _, index)| index).collect()
}

/// "I think it is B.": a capital that ends the text.
fn last_letter(text: &str, words: &[Word], options: usize) -> Option<usize> {
    let word = words.last().filter(|word| word.end - word.start == 1)?;
    let before = words.iter().rev().skip(1).take(3).map(|word| word.text.as_str());
    if before
        .into_iter()
        .any(|word| DENIALS.contains(&word) || ["or", "and", "option", "choice"].contains(&word))
    {
        return None;
    }
    let letter = text[word.start..].chars().next().filter(|letter| letter.is_uppercase())?;
    labels::index(letter).filter(|&index| index < options)
}
