//! Finding `<query>`, `<answer>` and `<think>` in what a model wrote.

/// One tag, open or closing, of either case and with stray blanks: `</ Query >`.
struct Tag {
    name: String,
    closing: bool,
    start: usize,
    end: usize,
}

/// What stands behind an opening tag.
pub(super) struct Body<'a> {
    pub text: &'a str,
    /// Whether its closing tag came; otherwise the body ends at the next tag of that name, or with the reply.
    pub closed: bool,
}

fn tags(text: &str) -> Vec<Tag> {
    text.match_indices('<').filter_map(|(start, _)| tag_at(text, start)).collect()
}

fn tag_at(text: &str, start: usize) -> Option<Tag> {
    let inside = &text[start + 1..];
    let length = inside.find(['<', '>'])?;
    if inside.as_bytes()[length] != b'>' {
        return None;
    }
    let inside = inside[..length].trim();
    let (closing, name) = inside.strip_prefix('/').map_or((false, inside), |name| (true, name.trim_start()));
    let name = name.split(|c: char| !c.is_ascii_alphabetic()).next().filter(|name| !name.is_empty())?;
    Some(Tag { name: name.to_ascii_lowercase(), closing, start, end: start + length + 2 })
}

/// The bodies of all tags called one of `names`, in order.
pub(super) fn bodies<'a>(text: &'a str, names: &[&str]) -> Vec<Body<'a>> {
    let tags: Vec<Tag> = tags(text).into_iter().filter(|tag| names.contains(&tag.name.as_str())).collect();
    let mut found = Vec::new();
    for (place, tag) in tags.iter().enumerate().filter(|(_, tag)| !tag.closing) {
        let next = tags.get(place + 1);
        let end = next.map_or(text.len(), |next| next.start);
        found.push(Body { text: &text[tag.end..end], closed: next.is_some_and(|next| next.closing) });
    }
    found
}

/// What follows the last `</think>`; everything when there is none.
pub(super) fn after_reasoning(text: &str) -> &str {
    let end = tags(text).into_iter().rfind(|tag| tag.closing && tag.name == "think").map(|tag| tag.end);
    end.map_or(text, |end| &text[end..])
}

/// `text` with the tags called one of `names` taken out.
pub(super) fn without_tags(text: &str, names: &[&str]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for tag in tags(text).into_iter().filter(|tag| names.contains(&tag.name.as_str())) {
        out.push_str(&text[from..tag.start]);
        out.push(' ');
        from = tag.end;
    }
    out.push_str(&text[from..]);
    out
}

/// `text` without the lines that open or close a fenced block.
pub(super) fn without_fences(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("```")).collect();
    lines.join("\n")
}
