//! The page around a report: escaping, the head with style and script, tables.

use std::fmt::Write;

use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Text from outside, fit for an element or a quoted attribute. Control characters that HTML forbids become U+FFFD.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Text from outside within a sentence of ours; its writing direction does not leak.
pub(super) fn inline(text: &str) -> String {
    format!("<bdi>{}</bdi>", escape(text))
}

/// A block of text from outside in its own writing direction, line breaks kept.
pub(super) fn block(class: &str, text: &str) -> String {
    format!("<p class=\"{class}\" dir=\"auto\">{}</p>", escape(text.trim()))
}

/// A list of notes under a heading; nothing for none.
pub(super) fn warnings(warnings: &[String]) -> String {
    if warnings.is_empty() {
        return String::new();
    }
    let items: String =
        warnings.iter().map(|text| format!("<li dir=\"auto\">{}</li>", escape(text))).collect();
    format!("<section class=\"warn\"><h2>Warnings</h2><ul>{items}</ul></section>")
}

/// Names with values, as a row of facts below the heading.
pub(super) fn facts(facts: &[(String, String)]) -> String {
    let mut out = String::new();
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = write!(out, "<div><dt>{}</dt><dd dir=\"auto\">{}</dd></div>", escape(name), escape(value));
    }
    if out.is_empty() { out } else { format!("<dl class=\"facts\">{out}</dl>") }
}

/// A table; cells are HTML already, the first of each row names it.
pub(super) struct Table {
    pub caption: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub fn html(&self) -> String {
        let mut out = format!("<table><caption>{}</caption><thead><tr>", self.caption);
        for cell in &self.head {
            let _ = write!(out, "<th scope=\"col\">{cell}</th>");
        }
        out.push_str("</tr></thead><tbody>");
        for row in &self.rows {
            out.push_str("<tr>");
            for (at, cell) in row.iter().enumerate() {
                let _ = match at {
                    0 => write!(out, "<th scope=\"row\">{cell}</th>"),
                    _ => write!(out, "<td>{cell}</td>"),
                };
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody></table>");
        out
    }

    /// Folded away below a picture: the same in numbers.
    pub fn folded(&self, summary: &str) -> String {
        let name = escape(summary);
        format!(
            "<details><summary>{name}</summary><div class=\"scroll\" tabindex=\"0\" role=\"region\" \
             aria-label=\"{name}\">{}</div></details>",
            self.html()
        )
    }
}

/// The whole document. Nothing is loaded from anywhere, and the policy in its head forbids it; the one script that may run is
/// known by its hash.
pub(super) fn page(title: &str, style: &str, body: &str) -> String {
    let title = escape(title.trim());
    let script = base64(&Sha256::digest(SCRIPT.as_bytes()));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; \
         style-src 'unsafe-inline'; script-src 'sha256-{script}'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{STYLE}{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n\
         <footer><p>Made by msjoe {}. This page is complete: it loads nothing.</p></footer>\n\
         <script>{SCRIPT}</script>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// Standard base64 with padding (RFC 4648).
pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
            out.push(if at <= three.len() { char::from(digit) } else { '=' });
        }
    }
    out
}
