//! From a document to statements (IAM user guide, "Grammar of the IAM JSON policy language").

use crate::kinesis::policy::condition::{Condition, Operator};
use crate::kinesis::policy::error::{POLICY_BYTES_MAX, PolicyError, PolicyFault};
use crate::kinesis::policy::json::Json;
use crate::kinesis::policy::pattern::{ArnPattern, Pattern, Syntax};
use crate::kinesis::policy::principals::{PrincipalPattern, Principals};
use crate::kinesis::principal::is_account_id;

/// The version of the language that has variables; documents of the other, or of none, do not.
const VERSION_WITH_VARIABLES: &str = "2012-10-17";
const VERSION_WITHOUT: &str = "2008-10-17";

/// One statement.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Statement {
    pub(super) effect: Effect,
    /// In a resource policy only.
    pub(super) principals: Option<Principals>,
    pub(super) actions: Selection<Pattern>,
    pub(super) resources: Selection<ArnPattern>,
    pub(super) conditions: Vec<Condition>,
}

/// What a statement does when it applies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    Allow,
    Deny,
}

/// What one of two elements selects, such as `Action` and `NotAction`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Selection<T> {
    These(Vec<T>),
    AllBut(Vec<T>),
}

/// An object with its place, from which elements are taken.
struct Element<'a> {
    place: String,
    entries: &'a [(String, Json)],
}

/// Reads the statements of a policy.
pub(super) fn statements(document: &str) -> Result<Vec<Statement>, PolicyError> {
    if document.len() > POLICY_BYTES_MAX {
        return Err(PolicyError::TooLarge { bytes: document.len() });
    }
    let json: Json = serde_json::from_str(document)
        .map_err(|error| PolicyError::Json { reason: error.to_string() })?;
    let policy = Element::of(&json, "the policy".to_owned())?;
    let policy = Element { place: String::new(), ..policy };
    policy.only(&["Version", "Id", "Statement"], "Version, Id and Statement")?;
    if let Some(id) = policy.get("Id") {
        text(id, "Id")?;
    }
    let variables = match policy.get("Version") {
        None => false,
        Some(version) => match text(version, "Version")? {
            VERSION_WITH_VARIABLES => true,
            VERSION_WITHOUT => false,
            other => {
                let fault = PolicyFault::value(other, "2012-10-17 or 2008-10-17");
                return Err(fault.at("Version"));
            }
        },
    };
    match policy.get("Statement") {
        None => Err(PolicyFault::Missing.at("Statement")),
        Some(Json::List(list)) if list.is_empty() => Err(PolicyFault::Empty.at("Statement")),
        Some(Json::List(list)) => (0..)
            .zip(list)
            .map(|(n, json): (usize, _)| statement(json, format!("Statement[{n}]"), variables))
            .collect(),
        Some(single) => Ok(vec![statement(single, "Statement".to_owned(), variables)?]),
    }
}

fn statement(json: &Json, place: String, variables: bool) -> Result<Statement, PolicyError> {
    let element = Element::of(json, place)?;
    element.only(
        &[
            "Sid",
            "Effect",
            "Principal",
            "NotPrincipal",
            "Action",
            "NotAction",
            "Resource",
            "NotResource",
            "Condition",
        ],
        "Sid, Effect, Principal, NotPrincipal, Action, NotAction, Resource, NotResource and \
         Condition",
    )?;
    if let Some(sid) = element.get("Sid") {
        text(sid, &element.inner("Sid"))?;
    }
    let place = element.inner("Effect");
    let effect = match element.get("Effect") {
        None => return Err(PolicyFault::Missing.at(place)),
        Some(effect) => match text(effect, &place)? {
            "Allow" => Effect::Allow,
            "Deny" => Effect::Deny,
            other => return Err(PolicyFault::value(other, "Allow or Deny").at(place)),
        },
    };
    let syntax = Syntax { wildcards: true, variables };
    Ok(Statement {
        effect,
        principals: principals(&element)?,
        actions: selection(&element, "Action", "NotAction", action)?,
        resources: selection(&element, "Resource", "NotResource", |text| resource(text, syntax))?,
        conditions: conditions(&element, variables)?,
    })
}

fn principals(element: &Element<'_>) -> Result<Option<Principals>, PolicyError> {
    Ok(match element.one_of("Principal", "NotPrincipal")? {
        None => None,
        Some((false, json, place)) => Some(Principals::These(principal_list(json, place)?)),
        Some((true, json, place)) => Some(Principals::AllBut(principal_list(json, place)?)),
    })
}

fn principal_list(json: &Json, place: String) -> Result<Vec<PrincipalPattern>, PolicyError> {
    const ALLOWED: &str = "AWS, Service, Federated and CanonicalUser";
    if let Json::Text(everyone) = json {
        return match everyone.as_str() {
            "*" => Ok(vec![PrincipalPattern::Everyone]),
            other => {
                let expected = "*: give {\"AWS\": \"...\"} with an account or an ARN";
                Err(PolicyFault::value(other, expected).at(place))
            }
        };
    }
    let element = Element::of(json, place)?;
    element.only(&["AWS", "Service", "Federated", "CanonicalUser"], ALLOWED)?;
    if element.entries.is_empty() {
        return Err(PolicyFault::Empty.at(element.place));
    }
    let mut principals = Vec::new();
    for (kind, json) in element.entries {
        let place = element.inner(kind);
        for name in texts(json, &place)? {
            if kind != "AWS" {
                principals.push(PrincipalPattern::Foreign);
                continue;
            }
            let expected = "*, an account id, or the ARN of a root user, user, role or session";
            let principal = PrincipalPattern::parse(&name)
                .ok_or_else(|| PolicyFault::value(&name, expected).at(&*place))?;
            principals.push(principal);
        }
    }
    Ok(principals)
}

/// Actions are matched without regard to case (IAM user guide, "Action").
fn action(text: &str) -> Result<Pattern, PolicyFault> {
    let is_service = |service: &str| {
        !service.is_empty() && service.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let is_name = |name: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"*?-_".contains(&byte);
        !name.is_empty() && name.bytes().all(allowed)
    };
    let is_action = text == "*"
        || text.split_once(':').is_some_and(|(service, name)| is_service(service) && is_name(name));
    let pattern = Pattern::parse(text, Syntax { wildcards: true, variables: false });
    match (is_action, pattern) {
        (true, Ok(pattern)) => Ok(pattern),
        _ => Err(PolicyFault::value(text, "an action as kinesis:PutRecord, or * for all")),
    }
}

fn resource(text: &str, syntax: Syntax) -> Result<ArnPattern, PolicyFault> {
    let is_arn = text == "*" || text.starts_with("arn:");
    // What stands in a field where it can never match was meant for another.
    let mut fields = text.splitn(6, ':').skip(4);
    let can_match = match fields.next() {
        Some(account) if !text.contains("${") => {
            // `aws` owns what every account has, such as managed policies.
            account.is_empty()
                || account == "aws"
                || account.contains(['*', '?'])
                || is_account_id(account)
        }
        _ => true,
    };
    match ArnPattern::parse(text, syntax) {
        Ok(pattern) if is_arn && can_match => Ok(pattern),
        _ => Err(PolicyFault::value(
            text,
            "an ARN as arn:aws:kinesis:region:account:stream/name, or * for all",
        )),
    }
}

fn conditions(element: &Element<'_>, variables: bool) -> Result<Vec<Condition>, PolicyError> {
    let mut conditions = Vec::new();
    let Some(json) = element.get("Condition") else { return Ok(conditions) };
    let operators = Element::of(json, element.inner("Condition"))?;
    for (name, json) in operators.entries {
        let place = operators.inner(name);
        let Some(operator) = Operator::parse(name) else {
            return Err(PolicyFault::Operator.at(place));
        };
        let keys = Element::of(json, place)?;
        if keys.entries.is_empty() {
            return Err(PolicyFault::Empty.at(keys.place));
        }
        for (key, json) in keys.entries {
            let place = keys.inner(key);
            let values = condition_values(json, &place)?;
            let condition = operator.with(key, &values, variables);
            conditions.push(condition.map_err(|fault| fault.at(place))?);
        }
    }
    Ok(conditions)
}

fn selection<T>(
    element: &Element<'_>,
    one: &'static str,
    other: &'static str,
    parse: impl Fn(&str) -> Result<T, PolicyFault>,
) -> Result<Selection<T>, PolicyError> {
    let Some((negated, json, place)) = element.one_of(one, other)? else {
        return Err(PolicyFault::OneOf { one, other }.at(&*element.place));
    };
    let parse = |text: &String| parse(text).map_err(|fault| fault.at(&*place));
    let parsed: Result<Vec<T>, PolicyError> = texts(json, &place)?.iter().map(parse).collect();
    Ok(if negated { Selection::AllBut(parsed?) } else { Selection::These(parsed?) })
}

fn text<'a>(json: &'a Json, place: &str) -> Result<&'a str, PolicyError> {
    match json {
        Json::Text(text) => Ok(text),
        _ => Err(PolicyFault::Type { expected: "a string" }.at(place)),
    }
}

/// One string, or a list of some.
fn texts(json: &Json, place: &str) -> Result<Vec<String>, PolicyError> {
    const EXPECTED: PolicyFault = PolicyFault::Type { expected: "a string or a list of strings" };
    match json {
        Json::Text(text) => Ok(vec![text.clone()]),
        Json::List(list) if list.is_empty() => Err(PolicyFault::Empty.at(place)),
        Json::List(list) => list
            .iter()
            .map(|json| match json {
                Json::Text(text) => Ok(text.clone()),
                _ => Err(EXPECTED.at(place)),
            })
            .collect(),
        _ => Err(EXPECTED.at(place)),
    }
}

/// One string, number or boolean, or a list of some; numbers and booleans as they are written.
fn condition_values(json: &Json, place: &str) -> Result<Vec<String>, PolicyError> {
    let scalar = |json: &Json| match json {
        Json::Text(text) => Ok(text.clone()),
        Json::Number(number) => Ok(number.to_string()),
        Json::Bool(value) => Ok(value.to_string()),
        _ => {
            let expected = "a string, number or boolean, or a list of them";
            Err(PolicyFault::Type { expected }.at(place))
        }
    };
    match json {
        Json::List(list) if list.is_empty() => Err(PolicyFault::Empty.at(place)),
        Json::List(list) => list.iter().map(scalar).collect(),
        single => Ok(vec![scalar(single)?]),
    }
}

impl<'a> Element<'a> {
    fn of(json: &'a Json, place: String) -> Result<Element<'a>, PolicyError> {
        match json {
            Json::Object(entries) => Ok(Element { place, entries }),
            _ => Err(PolicyFault::Type { expected: "an object" }.at(place)),
        }
    }

    fn get(&self, name: &str) -> Option<&'a Json> {
        self.entries.iter().find(|(found, _)| found == name).map(|(_, json)| json)
    }

    fn inner(&self, name: &str) -> String {
        let separator = if self.place.is_empty() { "" } else { "." };
        format!("{}{separator}{name}", self.place)
    }

    fn only(&self, names: &[&str], allowed: &'static str) -> Result<(), PolicyError> {
        match self.entries.iter().find(|(found, _)| !names.contains(&found.as_str())) {
            Some((found, _)) => Err(PolicyFault::Unknown { allowed }.at(self.inner(found))),
            None => Ok(()),
        }
    }

    /// The one of two elements that is there, with its place, and whether it is the other.
    fn one_of(
        &self,
        one: &'static str,
        other: &'static str,
    ) -> Result<Option<(bool, &'a Json, String)>, PolicyError> {
        match (self.get(one), self.get(other)) {
            (None, None) => Ok(None),
            (Some(json), None) => Ok(Some((false, json, self.inner(one)))),
            (None, Some(json)) => Ok(Some((true, json, self.inner(other)))),
            (Some(_), Some(_)) => Err(PolicyFault::OneOf { one, other }.at(&*self.place)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(document: &str) -> String {
        statements(document).expect_err("a faulty policy").to_string()
    }

    fn with_statement(elements: &str) -> String {
        format!(r#"{{"Version":"2012-10-17","Statement":[{{{elements}}}]}}"#)
    }

    #[test]
    fn every_element_is_read() {
        let document = r#"{
            "Id": "example", "Version": "2012-10-17",
            "Statement": [
                {"Sid": "One", "Effect": "Allow", "Principal": {"AWS": ["123456789012", "*"]},
                 "Action": ["kinesis:Get*", "*"], "Resource": "*"},
                {"Effect": "Deny", "NotPrincipal": {"Service": "lambda.amazonaws.com"},
                 "NotAction": "kinesis:PutRecord", "NotResource": ["arn:aws:kinesis:*"],
                 "Condition": {"Bool": {"aws:SecureTransport": false},
                               "NumericLessThan": {"a": 5, "b": ["6", 7]}}}
            ]
        }"#;
        let statements = statements(document).expect("a policy");
        assert_eq!(statements.len(), 2);
        assert_eq!(statements[0].effect, Effect::Allow);
        let Some(Principals::These(these)) = &statements[0].principals else { panic!("these") };
        assert_eq!(these[1], PrincipalPattern::Everyone);
        assert!(matches!(&statements[0].actions, Selection::These(actions) if actions.len() == 2));
        assert!(matches!(&statements[1].principals, Some(Principals::AllBut(_))));
        assert!(matches!(&statements[1].actions, Selection::AllBut(_)));
        assert!(matches!(&statements[1].resources, Selection::AllBut(_)));
        assert_eq!(statements[1].conditions.len(), 3);
    }

    #[test]
    fn a_single_statement_needs_no_list() {
        let document = r#"{"Statement":{"Effect":"Deny","Action":"*","Resource":"*"}}"#;
        assert_eq!(statements(document).expect("a policy").len(), 1);
    }

    #[test]
    fn faults_name_their_place() {
        for (elements, expected) in [
            (r#""Action":"*","Resource":"*""#, "Statement[0].Effect: it is missing"),
            (
                r#""Effect":"allow","Action":"*","Resource":"*""#,
                "Statement[0].Effect: \"allow\" is not Allow or Deny",
            ),
            (
                r#""Effect":1,"Action":"*","Resource":"*""#,
                "Statement[0].Effect: it must be a string",
            ),
            (
                r#""Effect":"Allow","Resource":"*""#,
                "Statement[0]: one of Action and NotAction must be there, and only one",
            ),
            (
                r#""Effect":"Allow","Action":"*","NotAction":"*","Resource":"*""#,
                "Statement[0]: one of Action and NotAction must be there, and only one",
            ),
            (
                r#""Effect":"Allow","Action":"*""#,
                "Statement[0]: one of Resource and NotResource must be there, and only one",
            ),
            (
                r#""Effect":"Allow","Action":"PutRecord","Resource":"*""#,
                "Statement[0].Action: \"PutRecord\" is not an action as kinesis:PutRecord, or * \
                 for all",
            ),
            (r#""Effect":"Allow","Action":[],"Resource":"*""#, "Statement[0].Action: it is empty"),
            (
                r#""Effect":"Allow","Action":["*",1],"Resource":"*""#,
                "Statement[0].Action: it must be a string or a list of strings",
            ),
            (
                r#""Effect":"Allow","Action":"*","Resource":"stream/orders""#,
                "Statement[0].Resource: \"stream/orders\" is not an ARN as \
                 arn:aws:kinesis:region:account:stream/name, or * for all",
            ),
            (
                r#""Effect":"Deny","Action":"*","Resource":"arn:aws:kinesis:*:stream/orders""#,
                "Statement[0].Resource: \"arn:aws:kinesis:*:stream/orders\" is not an ARN as \
                 arn:aws:kinesis:region:account:stream/name, or * for all",
            ),
            (
                r#""Effect":"Allow","Action":"*","Resource":"*","Principal":"123456789012""#,
                "Statement[0].Principal: \"123456789012\" is not *: give {\"AWS\": \"...\"} with \
                 an account or an ARN",
            ),
            (
                r#""Effect":"Allow","Action":"*","Resource":"*","Principal":{"AWS":"alice"}"#,
                "Statement[0].Principal.AWS: \"alice\" is not *, an account id, or the ARN of a \
                 root user, user, role or session",
            ),
            (
                r#""Effect":"Allow","Action":"*","Resource":"*","NotPrincipal":{}"#,
                "Statement[0].NotPrincipal: it is empty",
            ),
            (
                r#""Effect":"Allow","Action":"*","Resource":"*","Principal":{"User":"alice"}"#,
                "Statement[0].Principal.User: there is no such element here; those that may be \
                 are AWS, Service, Federated and CanonicalUser",
            ),
            (
                r#""Effect":"Allow","Action":"*","Resource":"*","Condition":{"Bool":{"a":"no"}}"#,
                "Statement[0].Condition.Bool.a: \"no\" is not true or false",
            ),
            (
                r#""Effect":"Allow","Action":"*","Resource":"*","Condition":{"Bool":{"a":[]}}"#,
                "Statement[0].Condition.Bool.a: it is empty",
            ),
            (
                r#""Effect":"Allow","Action":"*","Resource":"*","Condition":{"Bool":{}}"#,
                "Statement[0].Condition.Bool: it is empty",
            ),
            (
                r#""Effect":"Allow","Action":"*","Resource":"*","Condition":{"Bool":{"a":{}}}"#,
                "Statement[0].Condition.Bool.a: it must be a string, number or boolean, or a list \
                 of them",
            ),
            (
                r#""Effect":"Allow","Action":"*","Resource":"*","Condition":[]"#,
                "Statement[0].Condition: it must be an object",
            ),
            (
                r#""Sid":5,"Effect":"Allow","Action":"*","Resource":"*""#,
                "Statement[0].Sid: it must be a string",
            ),
        ] {
            assert_eq!(error(&with_statement(elements)), expected);
        }
        let unknown = error(&with_statement(r#""Effects":"Allow""#));
        assert!(unknown.starts_with("Statement[0].Effects: there is no such element"), "{unknown}");
        let operator = r#""Effect":"Allow","Action":"*","Resource":"*","Condition":{"Equals":{}}"#;
        let operator = error(&with_statement(operator));
        assert!(operator.starts_with("Statement[0].Condition.Equals: there is no such operator"));
        assert_eq!(error("[]"), "the policy: it must be an object");
        assert_eq!(error("{}"), "Statement: it is missing");
        assert_eq!(error(r#"{"Statement":[]}"#), "Statement: it is empty");
        assert_eq!(error(r#"{"Statement":["x"]}"#), "Statement[0]: it must be an object");
        assert_eq!(
            error(r#"{"Version":"2020-01-01","Statement":[]}"#),
            "Version: \"2020-01-01\" is not 2012-10-17 or 2008-10-17"
        );
        let twice = error(&with_statement(r#""Effect":"Deny","Effect":"Allow""#));
        assert!(twice.contains("\"Effect\" stands twice at line 1"), "{twice}");
    }

    #[test]
    fn the_size_is_limited() {
        let policy = with_statement(r#""Effect":"Allow","Action":"*","Resource":"*""#);
        let padded = format!("{policy}{}", " ".repeat(POLICY_BYTES_MAX - policy.len()));
        assert!(statements(&padded).is_ok());
        let found = statements(&format!("{padded} "));
        assert_eq!(found, Err(PolicyError::TooLarge { bytes: POLICY_BYTES_MAX + 1 }));
    }

    #[test]
    fn a_faulty_value_is_repeated_in_part_only() {
        let action = "x".repeat(500);
        let elements = format!(r#""Effect":"Allow","Action":"{action}","Resource":"*""#);
        let message = error(&with_statement(&elements));
        assert!(message.len() < 200 && message.contains("xxx..."), "{message}");
    }

    proptest! {
        #[test]
        fn any_text_is_a_policy_or_refused(text in ".*", bytes in any::<Vec<u8>>()) {
            let _ = statements(&text);
            let _ = statements(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn any_json_in_any_place_is_read_or_refused(
            name in prop::sample::select(vec![
                "Version", "Statement", "Effect", "Principal", "NotPrincipal", "Action",
                "NotAction", "Resource", "NotResource", "Condition", "Sid",
            ]),
            value in prop::sample::select(vec![
                "null", "1", "1.5e3", "[]", "{}", "\"*\"", "[\"*\"]", "{\"AWS\":\"*\"}", "true",
                "{\"Bool\":{\"x\":\"true\"}}", "{\"DateLessThan\":{\"\":9223372036854775807}}",
                "\"arn:\"", "\"${\"", "{\"StringLike\":{\"a\":\"${\"}}", "\"Deny\"",
            ]),
        ) {
            let mut elements =
                vec![("Effect", "\"Allow\""), ("Action", "\"*\""), ("Resource", "\"*\"")];
            elements.retain(|(other, _)| *other != name);
            elements.push((name, value));
            let text: Vec<String> =
                elements.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
            let _ = statements(&with_statement(&text.join(",")));
            let _ = statements(&format!("{{{}}}", text.join(",")));
        }
    }
}
