//! Enough of PromQL's grammar to tell that an expression of ours would be taken: selectors, ranges, functions, aggregations
//! and binary operators. (The parser on crates.io brings thirty crates, an unmaintained one among them.)

const FUNCTIONS: [&str; 4] = ["rate", "increase", "histogram_quantile", "absent"];
const AGGREGATIONS: [&str; 5] = ["sum", "max", "min", "count", "topk"];
const OPERATORS: [&str; 11] = ["==", "!=", ">=", "<=", ">", "<", "+", "-", "*", "/", "and"];

struct Parser<'t>(&'t str);

/// Whether `text` is an expression.
pub(super) fn parse(text: &str) -> Result<(), String> {
    let mut parser = Parser(text);
    parser.expression()?;
    match parser.0.trim() {
        "" => Ok(()),
        rest => Err(format!("what is {rest:?}?")),
    }
}

impl<'t> Parser<'t> {
    fn takes(&mut self, token: &str) -> bool {
        let rest = self.0.trim_start();
        let rest = rest.strip_prefix(token);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expects(&mut self, token: &str) -> Result<(), String> {
        if self.takes(token) { Ok(()) } else { Err(format!("{token:?} is missing before {:?}", self.0)) }
    }

    fn word(&mut self) -> &'t str {
        let rest = self.0.trim_start();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.').unwrap_or(rest.len());
        let (word, rest) = rest.split_at(end);
        self.0 = rest;
        word
    }

    fn expression(&mut self) -> Result<(), String> {
        self.term()?;
        while OPERATORS.iter().any(|operator| self.takes(operator)) {
            self.term()?;
        }
        Ok(())
    }

    fn term(&mut self) -> Result<(), String> {
        if self.takes("(") {
            self.expression()?;
            return self.expects(")");
        }
        let word = self.word();
        if word.is_empty() {
            return Err(format!("nothing is there before {:?}", self.0));
        }
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.parse::<f64>().map(drop).map_err(|error| error.to_string());
        }
        let is_aggregation = AGGREGATIONS.contains(&word);
        if is_aggregation && self.takes("by") {
            self.expects("(")?;
            self.list(|parser| if parser.word().is_empty() { Err("no label".to_owned()) } else { Ok(()) }, ")")?;
        }
        if is_aggregation || FUNCTIONS.contains(&word) {
            self.expects("(")?;
            return self.list(Self::expression, ")");
        }
        self.selector()
    }

    fn selector(&mut self) -> Result<(), String> {
        if self.takes("{") {
            self.list(Self::matcher, "}")?;
        }
        if self.takes("[") {
            let range = self.word();
            let number = range.strip_suffix(['s', 'm', 'h', 'd']).ok_or_else(|| format!("{range:?} is no range"))?;
            number.parse::<u32>().map_err(|error| error.to_string())?;
            self.expects("]")?;
        }
        if self.takes("(") { Err("no such function".to_owned()) } else { Ok(()) }
    }

    fn matcher(&mut self) -> Result<(), String> {
        if self.word().is_empty() || !["=~", "!~", "!=", "="].iter().any(|operator| self.takes(operator)) {
            return Err(format!("no matcher before {:?}", self.0));
        }
        self.expects("\"")?;
        let (_, rest) = self.0.split_once('"').ok_or("a text does not end")?;
        self.0 = rest;
        Ok(())
    }

    fn list(&mut self, item: impl Fn(&mut Self) -> Result<(), String>, end: &str) -> Result<(), String> {
        loop {
            item(self)?;
            if !self.takes(",") {
                return self.expects(end);
            }
        }
    }
}

#[test]
fn what_is_no_expression_is_told_apart() {
    for right in ["up", "sum by (a, b) (rate(x{y=~\"z.*\"}[5m])) > 10", "a / b > 0.8", "histogram_quantile(0.5, x)"] {
        assert_eq!(parse(right), Ok(()), "{right}");
    }
    for wrong in ["", "sum(", "rate(x[5m]", "x{y}", "x{y=\"z}", "x > ", "foo(x)", "x[5]", "a b", "sum by a (x)"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}
