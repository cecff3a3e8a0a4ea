//! Patterns of policies: text with wildcards and with variables, which stand for what the request
//! has under a condition key.
//!
//! The value of a variable is taken literally: a name with an asterisk in it opens nothing.

use crate::kinesis::policy::context::{ContextKey, Facts, Found};

/// What a pattern may contain beside text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Syntax {
    /// `*` for any characters and `?` for any one.
    pub(super) wildcards: bool,
    /// `${key}`, `${key, 'default'}` and `${*}`, `${?}`, `${$}` for these characters.
    pub(super) variables: bool,
}

/// Text, wildcards and variables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Pattern {
    parts: Vec<Part>,
}

/// An ARN in which every field is a pattern. A wildcard does not reach over the end of its field;
/// the sixth field is the rest, whatever colons are in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ArnPattern {
    /// A lone `*`.
    Any,
    /// The six fields.
    Fields(Box<[Pattern; ARN_FIELDS]>),
}

/// A variable that does not end, or has a default without quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct MalformedVariable;

const ARN_FIELDS: usize = 6;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Glyph {
    Char(char),
    AnyOne,
    AnyRun,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Glyphs(Vec<Glyph>),
    Variable { key: ContextKey, default: Option<String> },
}

impl Pattern {
    /// Reads a pattern.
    pub(super) fn parse(text: &str, syntax: Syntax) -> Result<Pattern, MalformedVariable> {
        let mut parts = Vec::new();
        let mut glyphs = Vec::new();
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            if syntax.variables && rest.starts_with("${") {
                let end = rest.find('}').ok_or(MalformedVariable)?;
                let inner = &rest[2..end];
                rest = &rest[end + 1..];
                match inner {
                    "*" | "?" | "$" => glyphs.extend(inner.chars().map(Glyph::Char)),
                    _ => {
                        if !glyphs.is_empty() {
                            parts.push(Part::Glyphs(std::mem::take(&mut glyphs)));
                        }
                        parts.push(variable(inner)?);
                    }
                }
                continue;
            }
            glyphs.push(match next {
                '*' if syntax.wildcards => Glyph::AnyRun,
                '?' if syntax.wildcards => Glyph::AnyOne,
                other => Glyph::Char(other),
            });
            rest = &rest[next.len_utf8()..];
        }
        if !glyphs.is_empty() || parts.is_empty() {
            parts.push(Part::Glyphs(glyphs));
        }
        Ok(Pattern { parts })
    }

    /// Whether the request has a value for each variable, or the variable a default.
    pub(super) fn resolves(&self, facts: &Facts<'_>) -> bool {
        self.parts.iter().all(|part| match part {
            Part::Variable { key, default: None } => matches!(key.find(facts), Found::One(_)),
            _ => true,
        })
    }

    /// Whether `value` is as the pattern says. A variable that the request has no value for, and
    /// no default, makes it no.
    pub(super) fn matches(&self, value: &str, ignore_case: bool, facts: &Facts<'_>) -> bool {
        if let [Part::Glyphs(glyphs)] = self.parts.as_slice() {
            return matches(glyphs, value, ignore_case);
        }
        let mut glyphs = Vec::new();
        for part in &self.parts {
            match part {
                Part::Glyphs(some) => glyphs.extend_from_slice(some),
                Part::Variable { key, default } => match (key.find(facts), default) {
                    (Found::One(found), _) => glyphs.extend(found.chars().map(Glyph::Char)),
                    (_, Some(default)) => glyphs.extend(default.chars().map(Glyph::Char)),
                    _ => return false,
                },
            }
        }
        matches(&glyphs, value, ignore_case)
    }
}

impl ArnPattern {
    /// Reads a pattern of an ARN. Fields that are missing at its end are taken as `*` (IAM user
    /// guide, "IAM ARNs").
    pub(super) fn parse(text: &str, syntax: Syntax) -> Result<ArnPattern, MalformedVariable> {
        if text == "*" {
            return Ok(ArnPattern::Any);
        }
        let mut fields = fields_of_pattern(text, syntax);
        fields.resize(ARN_FIELDS, "*");
        let parsed: Result<Vec<_>, _> =
            fields.into_iter().map(|field| Pattern::parse(field, syntax)).collect();
        let fields: [Pattern; ARN_FIELDS] = parsed?.try_into().map_err(|_| MalformedVariable)?;
        Ok(ArnPattern::Fields(Box::new(fields)))
    }

    /// Whether the request has a value for each variable, or the variable a default.
    pub(super) fn resolves(&self, facts: &Facts<'_>) -> bool {
        match self {
            ArnPattern::Any => true,
            ArnPattern::Fields(fields) => fields.iter().all(|field| field.resolves(facts)),
        }
    }

    /// Whether `arn` is as the pattern says.
    pub(super) fn matches(&self, arn: &str, facts: &Facts<'_>) -> bool {
        let ArnPattern::Fields(fields) = self else { return true };
        let mut values = arn.splitn(ARN_FIELDS, ':');
        let matches =
            |field: &Pattern| values.next().is_some_and(|value| field.matches(value, false, facts));
        fields.iter().all(matches)
    }
}

/// Whether a value is as glyphs say. Remembers the last run only, so that it takes at most
/// the product of both lengths.
fn matches(glyphs: &[Glyph], value: &str, ignore_case: bool) -> bool {
    let mut position = 0;
    let mut rest = value.chars();
    // Where to go on after the last run when what follows it does not match: with the run one
    // character longer.
    let mut retry: Option<(usize, std::str::Chars<'_>)> = None;
    loop {
        let mut ahead = rest.clone();
        let next = ahead.next();
        let advances = match (glyphs.get(position), next) {
            (None, None) => return true,
            (Some(Glyph::AnyRun), _) => {
                position += 1;
                retry = Some((position, rest.clone()));
                continue;
            }
            (Some(Glyph::AnyOne), Some(_)) => true,
            (Some(Glyph::Char(expected)), Some(found)) => same(*expected, found, ignore_case),
            _ => false,
        };
        if advances {
            position += 1;
            rest = ahead;
            continue;
        }
        let Some((after_run, from)) = &mut retry else { return false };
        if from.next().is_none() {
            return false;
        }
        position = *after_run;
        rest = from.clone();
    }
}

fn same(left: char, right: char, ignore_case: bool) -> bool {
    left == right || (ignore_case && left.to_lowercase().eq(right.to_lowercase()))
}

fn variable(inner: &str) -> Result<Part, MalformedVariable> {
    let Some((key, default)) = inner.split_once(',') else {
        return Ok(Part::Variable { key: ContextKey::parse(inner.trim()), default: None });
    };
    let quoted = default.trim().strip_prefix('\'').and_then(|text| text.strip_suffix('\''));
    let default = quoted.ok_or(MalformedVariable)?.to_owned();
    Ok(Part::Variable { key: ContextKey::parse(key.trim()), default: Some(default) })
}

/// The fields of an ARN's pattern, at most six. A colon within a variable separates nothing.
fn fields_of_pattern(text: &str, syntax: Syntax) -> Vec<&str> {
    let mut fields = Vec::new();
    let (mut start, mut at) = (0, 0);
    let bytes = text.as_bytes();
    while at < bytes.len() && fields.len() + 1 < ARN_FIELDS {
        if syntax.variables && text[at..].starts_with("${") {
            at += text[at..].find('}').map_or(2, |end| end + 1);
        } else if bytes[at] == b':' {
            fields.push(&text[start..at]);
            at += 1;
            start = at;
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    fields.push(&text[start..]);
    fields
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;
    use crate::kinesis::policy::context::Context;
    use crate::kinesis::principal::Principal;

    const FULL: Syntax = Syntax { wildcards: true, variables: true };

    fn with_facts<T>(test: impl FnOnce(&Facts<'_>) -> T) -> T {
        let principal = Principal::user("123456789012", "alice").expect("a user");
        let context = Context::new(UNIX_EPOCH, "eu-west-1");
        test(&Facts { principal: &principal, resource_account: "123456789012", context })
    }

    fn check(pattern: &str, value: &str, syntax: Syntax) -> bool {
        let pattern = Pattern::parse(pattern, syntax).expect("a pattern");
        with_facts(|facts| pattern.matches(value, false, facts))
    }

    fn check_arn(pattern: &str, value: &str) -> bool {
        let pattern = ArnPattern::parse(pattern, FULL).expect("a pattern");
        with_facts(|facts| pattern.matches(value, facts))
    }

    #[test]
    fn wildcards() {
        for (pattern, value, expected) in [
            ("", "", true),
            ("", "a", false),
            ("a", "", false),
            ("*", "", true),
            ("*", "anything", true),
            ("**", "x", true),
            ("?", "", false),
            ("?", "ä", true),
            ("?", "ab", false),
            ("a*c", "ac", true),
            ("a*c", "abbbc", true),
            ("a*c", "abbbcd", false),
            ("*ab", "aab", true),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("a?c*", "abcdef", true),
            ("kinesis:*Record*", "kinesis:PutRecords", true),
            ("*?*?", "a", false),
            ("*?*?", "ab", true),
        ] {
            assert_eq!(check(pattern, value, FULL), expected, "{pattern} {value}");
        }
        let literal = Syntax { wildcards: false, variables: false };
        assert!(check("a*?${aws:username}", "a*?${aws:username}", literal));
        assert!(!check("a*", "ab", literal));
    }

    #[test]
    fn many_runs_take_no_exponential_time() {
        let pattern = "*a".repeat(500);
        assert!(!check(&pattern, &format!("{}b", "a".repeat(2_000)), FULL));
    }

    #[test]
    fn variables_stand_for_what_the_request_has() {
        for (pattern, value, expected) in [
            ("${aws:username}", "alice", true),
            ("home/${aws:UserName}/*", "home/alice/x", true),
            ("home/${aws:username}/*", "home/bob/x", false),
            ("${*}", "*", true),
            ("${*}", "x", false),
            ("${?}${$}{", "?${", true),
            ("${aws:SourceIp}", "", false),
            ("${aws:SourceIp, 'nowhere'}", "nowhere", true),
            ("${aws:username, 'nobody'}", "alice", true),
            ("${no:such}", "", false),
            ("$x{", "$x{", true),
        ] {
            assert_eq!(check(pattern, value, FULL), expected, "{pattern} {value}");
        }
        for malformed in ["${", "a${aws:username", "${a, b}", "${a, 'b}"] {
            assert_eq!(Pattern::parse(malformed, FULL), Err(MalformedVariable), "{malformed}");
        }
    }

    #[test]
    fn the_value_of_a_variable_is_literal() {
        let principal = Principal::user("123456789012", "alice").expect("a user");
        let mut context = Context::new(UNIX_EPOCH, "eu-west-1");
        context.user_agent = Some("*");
        let facts = Facts { principal: &principal, resource_account: "1", context };
        let pattern = Pattern::parse("${aws:UserAgent}", FULL).expect("a pattern");
        assert!(pattern.matches("*", false, &facts));
        assert!(!pattern.matches("anything", false, &facts));
    }

    #[test]
    fn a_wildcard_stays_within_its_field_of_an_arn() {
        let stream = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
        let consumer = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders/consumer/c:17";
        for (pattern, arn, expected) in [
            ("*", stream, true),
            ("*", "*", true),
            (stream, stream, true),
            (stream, "*", false),
            ("arn:aws:kinesis:*:123456789012:stream/*", stream, true),
            ("arn:aws:kinesis:*:123456789012:stream/*", consumer, true),
            ("arn:aws:kinesis:*:*:stream/orders", stream, true),
            ("arn:aws:kinesis:*:stream/orders", stream, false),
            ("arn:aws:kinesis:*", stream, true),
            ("arn:aws:kinesis", stream, true),
            ("arn:aws:s3", stream, false),
            ("arn:aws:kinesis:eu-west-1:123456789012:stream/order?", stream, true),
            ("arn:*:*:*:*:stream/${aws:username}", stream, false),
            (
                "arn:aws:kinesis:*:*:stream/${aws:username}-*",
                "arn:aws:kinesis:eu-west-1:123456789012:stream/alice-1",
                true,
            ),
            ("arn:aws:kinesis:${aws:RequestedRegion}:*:*", stream, true),
        ] {
            assert_eq!(check_arn(pattern, arn), expected, "{pattern} {arn}");
        }
    }

    #[test]
    fn case_is_ignored_when_asked_for() {
        let pattern = Pattern::parse("kinesis:Put*", FULL).expect("a pattern");
        with_facts(|facts| {
            assert!(pattern.matches("KINESIS:putRecord", true, facts));
            assert!(!pattern.matches("KINESIS:putRecord", false, facts));
        });
    }

    proptest! {
        #[test]
        fn any_text_is_a_pattern_or_refused(text in ".*", value in ".*") {
            for syntax in [FULL, Syntax { wildcards: true, variables: false }] {
                if let Ok(pattern) = Pattern::parse(&text, syntax) {
                    with_facts(|facts| pattern.matches(&value, true, facts));
                }
                if let Ok(pattern) = ArnPattern::parse(&text, syntax) {
                    with_facts(|facts| pattern.matches(&value, facts));
                }
            }
        }

        #[test]
        fn text_without_special_characters_matches_itself_alone(text in "[a-z/:-]{0,20}") {
            prop_assert!(check(&text, &text, FULL));
            let longer = format!("{text}x");
            prop_assert!(!check(&text, &longer, FULL));
        }

        #[test]
        fn a_run_matches_what_was_cut_out(
            text in "[ab]{0,12}",
            at in 0_usize..13,
            to in 0_usize..13,
        ) {
            let (at, to) = (at.min(text.len()), to.min(text.len()));
            let (at, to) = (at.min(to), at.max(to));
            let pattern = format!("{}*{}", &text[..at], &text[to..]);
            prop_assert!(check(&pattern, &text, FULL));
        }
    }
}
