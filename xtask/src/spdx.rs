//! Licence expressions as crates give them: `MIT OR (Apache-2.0 AND Zlib)`.

/// Whether the expression can be satisfied with licences that `allowed`
/// accepts. The old form with a slash means OR. What cannot be parsed is not
/// satisfied.
pub fn satisfied(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let mut parser = Parser {
        words: &mut words,
        allowed,
    };
    let result = parser.any();
    result == Some(true) && parser.words.next().is_none()
}

struct Parser<'a, 'b> {
    words: &'a mut std::iter::Peekable<std::str::SplitWhitespace<'b>>,
    allowed: &'a dyn Fn(&str) -> bool,
}

impl Parser<'_, '_> {
    /// `all OR all OR …`; `None` if it cannot be parsed.
    fn any(&mut self) -> Option<bool> {
        let mut result = self.all()?;
        while self.words.next_if_eq(&"OR").is_some() {
            result |= self.all()?;
        }
        Some(result)
    }

    /// `one AND one AND …`
    fn all(&mut self) -> Option<bool> {
        let mut result = self.one()?;
        while self.words.next_if_eq(&"AND").is_some() {
            result &= self.one()?;
        }
        Some(result)
    }

    /// A licence, one WITH an exception, or an expression in parentheses.
    fn one(&mut self) -> Option<bool> {
        let word = self.words.next()?;
        if word == "(" {
            let result = self.any()?;
            return (self.words.next()? == ")").then_some(result);
        }
        if matches!(word, ")" | "OR" | "AND" | "WITH") {
            return None;
        }
        if self.words.next_if_eq(&"WITH").is_some() {
            let exception = self.words.next()?;
            return Some((self.allowed)(&format!("{word} WITH {exception}")));
        }
        Some((self.allowed)(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(expression: &str) -> bool {
        satisfied(expression, &|licence| {
            matches!(licence, "MIT" | "Apache-2.0" | "A WITH E")
        })
    }

    #[test]
    fn expression_with_an_allowed_choice_is_satisfied() {
        for expression in [
            "MIT",
            "GPL-3.0 OR MIT",
            "GPL-3.0/MIT",
            "(MIT OR GPL-3.0) AND Apache-2.0",
            "A WITH E",
            "GPL-3.0 AND Zlib OR MIT",
        ] {
            assert!(allowed(expression), "{expression}");
        }
    }

    #[test]
    fn expression_without_an_allowed_choice_is_not() {
        for expression in [
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "(MIT OR Zlib) AND BSD-3-Clause",
            "A WITH F",
            "A",
        ] {
            assert!(!allowed(expression), "{expression}");
        }
    }

    #[test]
    fn expression_malformed_is_not_satisfied() {
        for expression in [
            "",
            "MIT OR",
            "(MIT",
            "MIT)",
            "MIT Apache-2.0",
            "OR MIT",
            "MIT WITH",
        ] {
            assert!(!allowed(expression), "{expression}");
        }
    }
}
