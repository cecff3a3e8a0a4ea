//! Conditions of a statement: an operator, a key and the values it is compared to.
//!
//! What a condition means for a key that the request does not have, or has several times, is the
//! IAM user guide's ("Condition operators", "Conditions with multiple keys or values").

use std::net::IpAddr;

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use crate::kinesis::policy::context::{ContextKey, Facts, Found};
use crate::kinesis::policy::error::PolicyFault;
use crate::kinesis::policy::pattern::{ArnPattern, Pattern, Syntax};

/// One operator with one key. All conditions of a statement must hold.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Condition {
    key: ContextKey,
    quantifier: Quantifier,
    /// With `IfExists`: it holds when the request does not have the key.
    if_exists: bool,
    test: Test,
}

/// An operator by its name, before it meets its values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Operator {
    kind: OperatorKind,
    quantifier: Quantifier,
    if_exists: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Quantifier {
    None,
    ForAllValues,
    ForAnyValue,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OperatorKind {
    Text { negated: bool, ignore_case: bool, wildcards: bool },
    Number(Comparison),
    Date(Comparison),
    Bool,
    Address { negated: bool },
    Arn { negated: bool },
    Null,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, PartialEq, Debug)]
enum Test {
    Text { negated: bool, ignore_case: bool, patterns: Vec<Pattern> },
    Number { comparison: Comparison, values: Vec<f64> },
    Date { comparison: Comparison, values: Vec<DateTime> },
    Bool { values: Vec<bool> },
    Address { negated: bool, networks: Vec<Network> },
    Arn { negated: bool, patterns: Vec<ArnPattern> },
    Null { values: Vec<bool> },
}

/// Addresses that begin with the same bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Network {
    address: IpAddr,
    prefix_bits: u32,
}

impl Operator {
    /// The operator of that name, as in `ForAnyValue:StringLikeIfExists`.
    pub(super) fn parse(name: &str) -> Option<Operator> {
        let (quantifier, rest) = match name.split_once(':') {
            None => (Quantifier::None, name),
            Some(("ForAllValues", rest)) => (Quantifier::ForAllValues, rest),
            Some(("ForAnyValue", rest)) => (Quantifier::ForAnyValue, rest),
            Some(_) => return None,
        };
        let (if_exists, base) = match rest.strip_suffix("IfExists") {
            Some(base) => (true, base),
            None => (false, rest),
        };
        let text = |negated, ignore_case, wildcards| {
            Some(OperatorKind::Text { negated, ignore_case, wildcards })
        };
        let kind = match base {
            "StringEquals" => text(false, false, false),
            "StringNotEquals" => text(true, false, false),
            "StringEqualsIgnoreCase" => text(false, true, false),
            "StringNotEqualsIgnoreCase" => text(true, true, false),
            "StringLike" => text(false, false, true),
            "StringNotLike" => text(true, false, true),
            "Bool" => Some(OperatorKind::Bool),
            "IpAddress" => Some(OperatorKind::Address { negated: false }),
            "NotIpAddress" => Some(OperatorKind::Address { negated: true }),
            "ArnEquals" | "ArnLike" => Some(OperatorKind::Arn { negated: false }),
            "ArnNotEquals" | "ArnNotLike" => Some(OperatorKind::Arn { negated: true }),
            "Null" if !if_exists && quantifier == Quantifier::None => Some(OperatorKind::Null),
            _ => None,
        };
        let ordered = |prefix: &str, make: fn(Comparison) -> OperatorKind| {
            base.strip_prefix(prefix).and_then(Comparison::parse).map(make)
        };
        let kind = kind
            .or_else(|| ordered("Numeric", OperatorKind::Number))
            .or_else(|| ordered("Date", OperatorKind::Date))?;
        Some(Operator { kind, quantifier, if_exists })
    }

    /// The condition that this operator makes of a key and its values.
    pub(super) fn with(
        self,
        key: &str,
        values: &[String],
        variables: bool,
    ) -> Result<Condition, PolicyFault> {
        let syntax = |wildcards| Syntax { wildcards, variables };
        let test = match self.kind {
            OperatorKind::Text { negated, ignore_case, wildcards } => {
                let parse = |value: &str| Pattern::parse(value, syntax(wildcards)).ok();
                let patterns = all(values, "text whose ${ variables } end", parse)?;
                Test::Text { negated, ignore_case, patterns }
            }
            OperatorKind::Number(comparison) => {
                Test::Number { comparison, values: all(values, "a number", number)? }
            }
            OperatorKind::Date(comparison) => Test::Date {
                comparison,
                values: all(values, "a date as 2026-01-31T12:00:00Z or seconds", date)?,
            },
            OperatorKind::Bool => Test::Bool { values: all(values, "true or false", boolean)? },
            OperatorKind::Null => Test::Null { values: all(values, "true or false", boolean)? },
            OperatorKind::Address { negated } => {
                let networks =
                    all(values, "an address or network as 192.0.2.0/24", Network::parse)?;
                Test::Address { negated, networks }
            }
            OperatorKind::Arn { negated } => {
                let parse = |value: &str| {
                    let is_arn = value == "*" || value.starts_with("arn:");
                    is_arn.then(|| ArnPattern::parse(value, syntax(true)).ok()).flatten()
                };
                Test::Arn { negated, patterns: all(values, "an ARN, or * for any", parse)? }
            }
        };
        let Operator { quantifier, if_exists, .. } = self;
        Ok(Condition { key: ContextKey::parse(key), quantifier, if_exists, test })
    }
}

impl Condition {
    /// The name of the key, if it is one that no request has.
    pub(super) fn absent_key(&self) -> Option<&str> {
        match &self.key {
            ContextKey::Absent(name) => Some(name),
            _ => None,
        }
    }

    /// Whether it holds.
    pub(super) fn holds(&self, facts: &Facts<'_>) -> bool {
        let found = self.key.find(facts);
        if let Test::Null { values } = &self.test {
            return values.contains(&(found == Found::Nothing));
        }
        let values: Vec<&str> = match &found {
            Found::Nothing => Vec::new(),
            Found::One(value) => vec![value],
            Found::Many(values) => values.clone(),
        };
        let accepts = |value: &&str| self.test.accepts(value, facts);
        match (self.quantifier, values.is_empty()) {
            (_, true) if self.if_exists => true,
            (Quantifier::ForAllValues, true) => true,
            (Quantifier::ForAnyValue, true) => false,
            (Quantifier::None, true) => self.test.is_negated(),
            (Quantifier::ForAllValues, false) => values.iter().all(accepts),
            (Quantifier::ForAnyValue, false) => values.iter().any(accepts),
            (Quantifier::None, false) if self.test.is_negated() => values.iter().all(accepts),
            (Quantifier::None, false) => values.iter().any(accepts),
        }
    }

    /// Whether it would hold only because a variable has no value: unequal to nothing.
    pub(super) fn hangs_on_nothing(&self, facts: &Facts<'_>) -> bool {
        let resolves = match &self.test {
            Test::Text { negated: true, patterns, .. } => {
                patterns.iter().all(|pattern| pattern.resolves(facts))
            }
            Test::Arn { negated: true, patterns } => {
                patterns.iter().all(|pattern| pattern.resolves(facts))
            }
            _ => true,
        };
        !resolves
    }
}

impl Test {
    fn is_negated(&self) -> bool {
        match self {
            Test::Text { negated, .. }
            | Test::Address { negated, .. }
            | Test::Arn { negated, .. } => *negated,
            Test::Number { comparison, .. } | Test::Date { comparison, .. } => {
                *comparison == Comparison::NotEqual
            }
            Test::Bool { .. } | Test::Null { .. } => false,
        }
    }

    /// Whether one value of the request passes: it is as one of the policy's values says or, when
    /// negated, as none does.
    fn accepts(&self, value: &str, facts: &Facts<'_>) -> bool {
        match self {
            Test::Text { negated, ignore_case, patterns } => {
                *negated != patterns.iter().any(|p| p.matches(value, *ignore_case, facts))
            }
            Test::Arn { negated, patterns } => {
                *negated != patterns.iter().any(|pattern| pattern.matches(value, facts))
            }
            Test::Address { negated, networks } => {
                let address: Option<IpAddr> = value.parse().ok();
                let is_in = |network: &Network| address.is_some_and(|a| network.contains(a));
                *negated != networks.iter().any(is_in)
            }
            Test::Number { comparison, values } => comparison.accepts(number(value), values),
            Test::Date { comparison, values } => comparison.accepts(date(value), values),
            Test::Bool { values } => boolean(value).is_some_and(|value| values.contains(&value)),
            Test::Null { .. } => false,
        }
    }
}

impl Comparison {
    fn parse(name: &str) -> Option<Comparison> {
        Some(match name {
            "Equals" => Comparison::Equal,
            "NotEquals" => Comparison::NotEqual,
            "LessThan" => Comparison::Less,
            "LessThanEquals" => Comparison::LessOrEqual,
            "GreaterThan" => Comparison::Greater,
            "GreaterThanEquals" => Comparison::GreaterOrEqual,
            _ => return None,
        })
    }

    fn accepts<T: PartialOrd>(self, found: Option<T>, values: &[T]) -> bool {
        let Some(found) = found else { return self == Comparison::NotEqual };
        match self {
            Comparison::Equal => values.contains(&found),
            Comparison::NotEqual => !values.contains(&found),
            Comparison::Less => values.iter().any(|value| found < *value),
            Comparison::LessOrEqual => values.iter().any(|value| found <= *value),
            Comparison::Greater => values.iter().any(|value| found > *value),
            Comparison::GreaterOrEqual => values.iter().any(|value| found >= *value),
        }
    }
}

impl Network {
    /// An address with or without the bits of its prefix: `192.0.2.0/24`, `2001:db8::1`.
    fn parse(text: &str) -> Option<Network> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let bits = if address.is_ipv4() { u32::BITS } else { u128::BITS };
        let prefix_bits = match prefix {
            None => bits,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|prefix| *prefix <= bits)?
            }
            Some(_) => return None,
        };
        Some(Network { address, prefix_bits })
    }

    fn contains(&self, address: IpAddr) -> bool {
        let differing = match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(other)) => (ours.to_bits() ^ other.to_bits())
                .checked_shr(u32::BITS - self.prefix_bits)
                .map(u128::from),
            (IpAddr::V6(ours), IpAddr::V6(other)) => {
                (ours.to_bits() ^ other.to_bits()).checked_shr(u128::BITS - self.prefix_bits)
            }
            _ => return false,
        };
        // A prefix of no bits has all addresses in it.
        differing.unwrap_or(0) == 0
    }
}

fn all<T>(
    values: &[String],
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, PolicyFault> {
    let parse = |value: &String| parse(value).ok_or_else(|| PolicyFault::value(value, expected));
    values.iter().map(parse).collect()
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

fn boolean(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("true") {
        Some(true)
    } else if text.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

/// A date in one of the W3C's forms of ISO 8601, or seconds since 1970. Four digits are a year.
fn date(text: &str) -> Option<DateTime> {
    if text.len() != 4 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(DateTime::from_secs);
    }
    let (day, time) = match text.split_once('T') {
        Some((day, time)) => (day, Some(time)),
        None => (text, None),
    };
    let day = match day.len() {
        4 => format!("{day}-01-01"),
        7 => format!("{day}-01"),
        _ => day.to_owned(),
    };
    let time = match time {
        None => "00:00:00Z".to_owned(),
        Some(time) => {
            let (clock, zone) = time.split_at(time.find(['Z', '+', '-'])?);
            let seconds = if clock.len() == 5 { ":00" } else { "" };
            format!("{clock}{seconds}{zone}")
        }
    };
    DateTime::from_str(&format!("{day}T{time}"), Format::DateTimeWithOffset).ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;
    use crate::kinesis::policy::context::{Context, RequestTags, Tags};
    use crate::kinesis::principal::Principal;

    /// alice at 2015-08-30T12:36:00Z from 192.0.2.7, with two tags in the request.
    fn check(operator: &str, key: &str, values: &[&str]) -> bool {
        let principal = Principal::user("123456789012", "alice").expect("a user");
        let tags = [("team", "red"), ("cost", "42")];
        let tags: Tags = tags.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let context = Context {
            source_ip: Some("192.0.2.7".parse().expect("an address")),
            request_tags: RequestTags::Tags(&tags),
            ..Context::new(UNIX_EPOCH + Duration::from_secs(1_440_938_160), "eu-west-1")
        };
        let facts = Facts { principal: &principal, resource_account: "210987654321", context };
        let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        let operator = Operator::parse(operator).expect("an operator");
        operator.with(key, &values, true).expect("a condition").holds(&facts)
    }

    #[test]
    fn operators_compare() {
        let (team, cost) = ("aws:RequestTag/team", "aws:RequestTag/cost");
        let (time, ip, arn) = ("aws:CurrentTime", "aws:SourceIp", "aws:PrincipalArn");
        for (operator, key, values, expected) in [
            ("StringEquals", team, &["blue", "red"][..], true),
            ("StringEquals", team, &["RED"], false),
            ("StringEquals", team, &["r*"], false),
            ("StringNotEquals", team, &["blue", "red"], false),
            ("StringNotEquals", team, &["blue", "green"], true),
            ("StringEqualsIgnoreCase", team, &["RED"], true),
            ("StringNotEqualsIgnoreCase", team, &["RED"], false),
            ("StringLike", team, &["r?d", "b*"], true),
            ("StringLike", team, &["R*"], false),
            ("StringNotLike", team, &["b*"], true),
            ("StringEquals", "aws:username", &["${aws:username}"], true),
            ("NumericEquals", cost, &["42.0"], true),
            ("NumericNotEquals", cost, &["42", "43"], false),
            ("NumericLessThan", cost, &["42"], false),
            ("NumericLessThanEquals", cost, &["42"], true),
            ("NumericGreaterThan", cost, &["50", "41"], true),
            ("NumericGreaterThanEquals", cost, &["43"], false),
            ("NumericEquals", team, &["42"], false),
            ("NumericNotEquals", team, &["42"], true),
            ("DateEquals", time, &["2015-08-30T14:36+02:00"], true),
            ("DateNotEquals", time, &["2015-08-30T12:36:00Z"], false),
            ("DateLessThan", time, &["2015-08-31"], true),
            ("DateLessThan", time, &["2015-08"], false),
            ("DateLessThanEquals", time, &["1440938160"], true),
            ("DateGreaterThan", time, &["2015"], true),
            ("DateGreaterThanEquals", time, &["2015-08-30T12:36:00.5Z"], false),
            ("DateLessThan", "aws:EpochTime", &["2015-08-31"], true),
            ("NumericGreaterThan", "aws:EpochTime", &["1440938159"], true),
            ("Bool", "aws:SecureTransport", &["false"], true),
            ("Bool", "aws:SecureTransport", &["True"], false),
            ("IpAddress", ip, &["192.0.2.0/24", "2001:db8::/32"], true),
            ("IpAddress", ip, &["192.0.2.8/31"], false),
            ("IpAddress", ip, &["192.0.2.7"], true),
            ("IpAddress", ip, &["0.0.0.0/0"], true),
            ("IpAddress", ip, &["::/0"], false),
            ("NotIpAddress", ip, &["192.0.2.0/24"], false),
            ("NotIpAddress", ip, &["198.51.100.0/24"], true),
            ("ArnEquals", arn, &["arn:aws:iam::*:user/al*"], true),
            ("ArnLike", arn, &["arn:aws:iam:*:user/alice"], false),
            ("ArnNotLike", arn, &["arn:aws:iam::123456789012:user/${aws:username}"], false),
            ("ArnNotEquals", arn, &["arn:aws:iam::123456789012:user/bob"], true),
            ("Null", "aws:TokenIssueTime", &["true"], true),
            ("Null", "aws:TokenIssueTime", &["false"], false),
            ("Null", team, &["false"], true),
        ] {
            assert_eq!(check(operator, key, values), expected, "{operator} {key} {values:?}");
        }
    }

    #[test]
    fn a_key_that_the_request_does_not_have() {
        for (operator, values, expected) in [
            ("StringEquals", &["x"][..], false),
            ("StringNotEquals", &["x"], true),
            ("StringLike", &["*"], false),
            ("NumericNotEquals", &["1"], true),
            ("NumericLessThan", &["1"], false),
            ("DateNotEquals", &["2015"], true),
            ("Bool", &["true"], false),
            ("NotIpAddress", &["::1"], true),
            ("ArnNotLike", &["*"], true),
            ("StringEqualsIfExists", &["x"], true),
            ("StringNotEqualsIfExists", &["x"], true),
            ("BoolIfExists", &["true"], true),
            ("ForAllValues:StringEquals", &["x"], true),
            ("ForAnyValue:StringEquals", &["x"], false),
            ("ForAnyValue:StringNotEquals", &["x"], false),
            ("ForAnyValue:StringEqualsIfExists", &["x"], true),
        ] {
            assert_eq!(check(operator, "aws:ResourceTag/none", values), expected, "{operator}");
        }
        assert!(!check("StringEqualsIfExists", "aws:RequestTag/team", &["x"]));
    }

    #[test]
    fn a_key_with_several_values() {
        for (operator, values, expected) in [
            ("ForAllValues:StringEquals", &["team", "cost", "more"][..], true),
            ("ForAllValues:StringEquals", &["team"], false),
            ("ForAllValues:StringNotEquals", &["other"], true),
            ("ForAllValues:StringNotEquals", &["team"], false),
            ("ForAnyValue:StringEquals", &["team", "none"], true),
            ("ForAnyValue:StringEquals", &["none"], false),
            ("ForAnyValue:StringNotEquals", &["team"], true),
            ("ForAnyValue:StringNotEquals", &["team", "cost"], false),
            ("StringEquals", &["team"], true),
            ("StringNotEquals", &["team"], false),
            ("StringNotEquals", &["other"], true),
            ("Null", &["false"], true),
        ] {
            assert_eq!(check(operator, "aws:TagKeys", values), expected, "{operator} {values:?}");
        }
    }

    #[test]
    fn operators_that_do_not_exist_are_refused() {
        for name in [
            "",
            "stringequals",
            "StringEqual",
            "String",
            "Numeric",
            "DateLike",
            "BinaryEquals",
            "NullIfExists",
            "ForAllValues:Null",
            "ForSomeValues:StringEquals",
            "IfExists",
            "ForAllValues:",
            "NumericLessThanEqualsX",
        ] {
            assert_eq!(Operator::parse(name), None, "{name}");
        }
    }

    #[test]
    fn values_of_another_kind_are_refused() {
        for (operator, value) in [
            ("NumericEquals", "many"),
            ("NumericEquals", "NaN"),
            ("NumericEquals", "1e999"),
            ("DateLessThan", "yesterday"),
            ("DateLessThan", "2015-13-01"),
            ("DateLessThan", "2015-08-30T12:36:00"),
            ("DateLessThan", ""),
            ("Bool", "yes"),
            ("Null", ""),
            ("IpAddress", "192.0.2.0/33"),
            ("IpAddress", "2001:db8::/129"),
            ("IpAddress", "192.0.2.0/+8"),
            ("IpAddress", "192.0.2.*"),
            ("ArnLike", "user/alice"),
            ("StringLike", "${aws:username"),
        ] {
            let operator = Operator::parse(operator).expect("an operator");
            let made = operator.with("aws:username", &[value.to_owned()], true);
            assert!(matches!(made, Err(PolicyFault::Value { .. })), "{operator:?} {value}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_value_or_refused(text in ".*", digits in "[0-9:TZ+./-]{0,30}") {
            let _ = (number(&text), boolean(&text), date(&text), Network::parse(&text));
            let _ = (number(&digits), date(&digits), Network::parse(&digits));
            prop_assert_eq!(Operator::parse(&text), None);
        }

        #[test]
        fn a_network_has_the_addresses_that_begin_alike(a: u32, b: u32, prefix in 0_u32..=32) {
            let network = format!("{}/{prefix}", std::net::Ipv4Addr::from_bits(a));
            let network = Network::parse(&network).expect("a network");
            let alike = (a ^ b).leading_zeros() >= prefix;
            let address = IpAddr::V4(std::net::Ipv4Addr::from_bits(b));
            prop_assert_eq!(network.contains(address), alike);
        }
    }
}
