//! Kubernetes label selectors over Hubble's labels: `source:key=value`, where a selector's key without source means any.

/// The longest name or value, and the longest prefix of a key, that a label may have.
const MOST: usize = 63;
const MOST_PREFIX: usize = 253;

/// What is wrong with a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// No key where one belongs.
    #[error("{selector:?}: a label key is missing")]
    NoKey {
        /// The selector.
        selector: String,
    },
    /// A key or value that no label has.
    #[error("{selector:?}: {text:?} is no label key or value")]
    Text {
        /// The selector.
        selector: String,
        /// The part.
        text: String,
    },
    /// Anything else.
    #[error("{selector:?}: expected {expected} at {rest:?}")]
    Syntax {
        /// The selector.
        selector: String,
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        rest: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    Exists,
    DoesNotExist,
    In(Vec<String>),
    NotIn(Vec<String>),
    GreaterThan(i64),
    LessThan(i64),
}

/// One requirement: of a label with this key from this source (none: from any).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    source: Option<String>,
    key: String,
    operator: Operator,
}

/// All of the requirements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

impl LabelSelector {
    /// Understands `a=b`, `a!=b`, `a in (x, y)`, `a notin (x)`, `a`, `!a`, `a>1`, `a<1`, joined by commas.
    ///
    /// # Errors
    /// If it is not of that form.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { selector: text, rest: text.trim_start() };
        let mut requirements = Vec::new();
        while !parser.rest.is_empty() {
            requirements.push(parser.requirement()?);
            if !parser.rest.is_empty() {
                parser.expect(",", "a comma or the end")?;
                if parser.rest.is_empty() {
                    return Err(SelectorError::NoKey { selector: text.to_owned() });
                }
            }
        }
        Ok(Self(requirements))
    }

    /// True if labels of this form have everything that is required.
    #[must_use]
    pub fn matches(&self, labels: &[String]) -> bool {
        self.0.iter().all(|requirement| requirement.matches(labels))
    }
}

impl Requirement {
    fn matches(&self, labels: &[String]) -> bool {
        let value = labels.iter().find_map(|label| self.value_in(label));
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.operator {
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::In(values) => value.is_some_and(|value| values.iter().any(|it| it == value)),
            Operator::NotIn(values) => value.is_none_or(|value| values.iter().all(|it| it != value)),
            Operator::GreaterThan(limit) => number().is_some_and(|number| number > *limit),
            Operator::LessThan(limit) => number().is_some_and(|number| number < *limit),
        }
    }

    /// The label's value if it is the one asked for.
    fn value_in<'l>(&self, label: &'l str) -> Option<&'l str> {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        let (source, key) = key.split_once(':').unwrap_or(("", key));
        (key == self.key && self.source.as_deref().is_none_or(|asked| asked == source)).then_some(value)
    }
}

struct Parser<'t> {
    selector: &'t str,
    rest: &'t str,
}

impl<'t> Parser<'t> {
    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let absent = self.take("!");
        let name = self.word(|c| !c.is_whitespace() && !matches!(c, '=' | '!' | ',' | '(' | ')' | '<' | '>'));
        let (source, key) = match name.split_once(':') {
            Some(("any", key)) => (None, key),
            Some((source, key)) => (Some(source.to_owned()), key),
            None => (None, name),
        };
        if key.is_empty() {
            return Err(SelectorError::NoKey { selector: self.selector.to_owned() });
        }
        self.check_key(key)?;
        let operator = if absent { Operator::DoesNotExist } else { self.operator()? };
        Ok(Requirement { source, key: key.to_owned(), operator })
    }

    fn operator(&mut self) -> Result<Operator, SelectorError> {
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Ok(Operator::Exists);
        }
        if self.take("!=") {
            return Ok(Operator::NotIn(vec![self.value()?]));
        }
        if self.take("==") || self.take("=") {
            return Ok(Operator::In(vec![self.value()?]));
        }
        if self.take(">") {
            return Ok(Operator::GreaterThan(self.number()?));
        }
        if self.take("<") {
            return Ok(Operator::LessThan(self.number()?));
        }
        match self.word(|c| c.is_ascii_alphabetic()) {
            "in" => Ok(Operator::In(self.values()?)),
            "notin" => Ok(Operator::NotIn(self.values()?)),
            _ => Err(self.error("one of =, ==, !=, in, notin, <, >")),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        self.expect("(", "values in parentheses")?;
        if self.rest.starts_with(')') {
            return Err(self.error("a value"));
        }
        let mut values = vec![self.value()?];
        while self.take(",") {
            values.push(self.value()?);
        }
        self.expect(")", "a closing parenthesis")?;
        Ok(values)
    }

    fn value(&mut self) -> Result<String, SelectorError> {
        let value = self.word(|c| !c.is_whitespace() && !matches!(c, '=' | '!' | ',' | '(' | ')' | '<' | '>'));
        self.check(value, |c| matches!(c, '-' | '_' | '.'))?;
        Ok(value.to_owned())
    }

    fn number(&mut self) -> Result<i64, SelectorError> {
        let text = self.value()?;
        text.parse().map_err(|_no_number: std::num::ParseIntError| self.error("a whole number"))
    }

    /// `name` or `prefix/name`.
    fn check_key(&self, key: &str) -> Result<(), SelectorError> {
        let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
        let wrong = name.is_empty()
            || prefix.is_some_and(|it| {
                it.is_empty() || it.len() > MOST_PREFIX || it.chars().any(|c| c.is_ascii_uppercase())
            });
        if wrong {
            return Err(SelectorError::Text { selector: self.selector.to_owned(), text: key.to_owned() });
        }
        if let Some(prefix) = prefix {
            for part in prefix.split('.') {
                self.check(part, |c| c == '-')?;
            }
        }
        self.check(name, |c| matches!(c, '-' | '_' | '.'))
    }

    /// Letters and digits, and in between what `others` takes.
    fn check(&self, text: &str, others: fn(char) -> bool) -> Result<(), SelectorError> {
        let inner = text.trim_matches(|c: char| c.is_ascii_alphanumeric());
        let ends = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
        let sound = text.len() <= MOST
            && inner.chars().all(|c| c.is_ascii_alphanumeric() || others(c))
            && ends(text.chars().next())
            && ends(text.chars().next_back());
        if sound {
            return Ok(());
        }
        Err(SelectorError::Text { selector: self.selector.to_owned(), text: text.to_owned() })
    }

    /// Takes a token and the space behind it, if it is next.
    fn take(&mut self, token: &str) -> bool {
        let Some(rest) = self.rest.strip_prefix(token) else { return false };
        self.rest = rest.trim_start();
        true
    }

    fn expect(&mut self, token: &str, expected: &'static str) -> Result<(), SelectorError> {
        if self.take(token) { Ok(()) } else { Err(self.error(expected)) }
    }

    fn word(&mut self, of: fn(char) -> bool) -> &'t str {
        let end = self.rest.find(|c| !of(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        word
    }

    fn error(&self, expected: &'static str) -> SelectorError {
        SelectorError::Syntax { selector: self.selector.to_owned(), expected, rest: self.rest.to_owned() }
    }
}
