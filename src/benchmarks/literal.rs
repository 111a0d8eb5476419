//! Lists written as Python literals, which is how data frames put them into a table cell: `['red', "the dog's"]`.

use serde_json::Value;

/// The value of a literal: a list or tuple (nested too) of strings, numbers, `None`, `True` and `False`, or JSON.
///
/// Elements may be separated by space alone, which is how numpy prints an array of strings (`['a' 'b']`); Python itself
/// would join the two. An unknown escape keeps its backslash, as in Python.
///
/// # Errors
/// What was expected, and the character at which something else came.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    if let Ok(value) = serde_json::from_str(text) {
        return Ok(value);
    }
    let mut reader = Reader { rest: text.chars().collect(), at: 0 };
    let value = reader.value(0)?;
    reader.space();
    match reader.peek() {
        None => Ok(value),
        Some(other) => Err(reader.expected("the end of the list", other)),
    }
}

/// Deepest nesting read: a hostile cell must not exhaust the stack.
const DEPTH: usize = 16;

struct Reader {
    rest: Vec<char>,
    at: usize,
}

impl Reader {
    fn peek(&self) -> Option<char> {
        self.rest.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek();
        self.at += usize::from(next.is_some());
        next
    }

    fn space(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
    }

    fn expected(&self, what: &str, got: impl Into<Option<char>>) -> String {
        let got = got.into().map_or("the end".to_owned(), |c| format!("{c:?}"));
        format!("expected {what}, got {got} at character {}", self.at + 1)
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        self.space();
        match self.peek() {
            Some('[') if depth < DEPTH => self.list(']', depth),
            Some('(') if depth < DEPTH => self.list(')', depth),
            Some('\'' | '"') => self.string().map(Value::String),
            Some(c) if c.is_alphanumeric() || matches!(c, '-' | '+' | '.') => self.word(),
            other => Err(self.expected("a list, a text in quotes or a number", other)),
        }
    }

    fn list(&mut self, close: char, depth: usize) -> Result<Value, String> {
        self.at += 1;
        let mut values = vec![];
        loop {
            self.space();
            if self.peek() == Some(close) {
                self.at += 1;
                return Ok(Value::Array(values));
            }
            values.push(self.value(depth + 1)?);
            self.space();
            match self.peek() {
                Some(',') => self.at += 1,
                Some('\'' | '"') => {}
                Some(c) if c == close => {}
                other => return Err(self.expected(&format!("a comma or {close:?}"), other)),
            }
        }
    }

    /// A number, a name, or the prefix of a string (`u'...'`, `r'...'`).
    fn word(&mut self) -> Result<Value, String> {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_alphanumeric() || matches!(c, '-' | '+' | '.' | '_')) {
            self.at += 1;
        }
        let word: String = self.rest[start..self.at].iter().collect();
        match (word.as_str(), self.peek()) {
            ("u" | "U", Some('\'' | '"')) => return self.string().map(Value::String),
            ("None" | "nan" | "null", _) => return Ok(Value::Null),
            ("True" | "true", _) => return Ok(Value::Bool(true)),
            ("False" | "false", _) => return Ok(Value::Bool(false)),
            _ => {}
        }
        if let Ok(number) = word.parse::<i64>() {
            return Ok(Value::from(number));
        }
        let number = word.parse::<f64>().ok().filter(|number| number.is_finite());
        number.map(Value::from).ok_or_else(|| {
            format!("expected a text in quotes or a number, got {word:?} at character {}", start + 1)
        })
    }

    fn string(&mut self) -> Result<String, String> {
        let quote = self.next();
        let mut text = String::new();
        loop {
            match self.next() {
                None => return Err(self.expected("a closing quote", None)),
                end if end == quote => return Ok(text),
                Some('\\') => self.escape(&mut text)?,
                Some(c) => text.push(c),
            }
        }
    }

    fn escape(&mut self, text: &mut String) -> Result<(), String> {
        let Some(kind) = self.next() else {
            return Err(self.expected("a character after the backslash", None));
        };
        match kind {
            '\n' => {}
            '\\' | '\'' | '"' => text.push(kind),
            'n' => text.push('\n'),
            't' => text.push('\t'),
            'r' => text.push('\r'),
            'a' => text.push('\u{7}'),
            'b' => text.push('\u{8}'),
            'f' => text.push('\u{c}'),
            'v' => text.push('\u{b}'),
            'x' => self.code(2, text)?,
            'u' => self.code(4, text)?,
            'U' => self.code(8, text)?,
            '0'..='7' => {
                let digits: String =
                    self.rest[self.at - 1..].iter().take(3).take_while(|c| c.is_digit(8)).collect();
                self.at += digits.len() - 1;
                let code = u32::from_str_radix(&digits, 8).ok().and_then(char::from_u32);
                text.push(code.unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            other => text.extend(['\\', other]),
        }
        Ok(())
    }

    fn code(&mut self, digits: usize, text: &mut String) -> Result<(), String> {
        let hex: String = self.rest[self.at..].iter().take(digits).collect();
        let code = u32::from_str_radix(&hex, 16).ok().filter(|_| hex.chars().count() == digits);
        let Some(code) = code else {
            return Err(format!(
                "expected {digits} hexadecimal digits, got {hex:?} at character {}",
                self.at + 1
            ));
        };
        self.at += digits;
        text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
        Ok(())
    }
}
