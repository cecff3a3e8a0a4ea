//! What is let in and what is refused, by requests that botocore signed.

use std::time::{Duration, UNIX_EPOCH};

use http::header::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::vectors::{BOTOCORE_SECRET, SIGNED_AT_S, Vector, botocore, botocore_vector};
use super::*;
use crate::kinesis::policy::Context;

const KEY_ID: &str = "AKIATHALWEGEXAMPLE01";
/// Base64 of the SHA-256 of `X`.
const DIGEST_OF_X: &str = "S2irOEf+2n1sYsH7y+6/o16rc1HtXnj03a3qXfZLgBU=";

fn authenticator() -> Authenticator {
    Authenticator::new(credentials(""))
}

fn credentials(more: &str) -> Credentials {
    let document = format!(
        "[[key]]\naccess_key_id = \"{KEY_ID}\"\nsecret_access_key = \"{BOTOCORE_SECRET}\"\n\
         account_id = \"123456789012\"\n{more}"
    );
    Credentials::from_document(&document).expect("valid credentials")
}

fn at(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).expect("after 1970"))
}

/// What is refused without the body is refused with it in the same way.
fn judge(vector: &Vector) -> Result<Caller, AuthError> {
    let (authenticator, now) = (authenticator(), at(SIGNED_AT_S));
    let admitted = authenticator.admit(&vector.head, now);
    let judged = authenticator.authenticate(&vector.head, &vector.body, now);
    let told = |error: &AuthError| (error.kind(), error.to_string());
    let needs_body =
        |error: &&AuthError| matches!(error, AuthError::Mismatch { .. } | AuthError::SessionToken);
    let without_body = judged.as_ref().err().filter(|error| !needs_body(error));
    assert_eq!(admitted.as_ref().err().map(told), without_body.map(told));
    judged
}

fn with_header(mut vector: Vector, name: &'static str, value: &str) -> Vector {
    let value = HeaderValue::from_str(value).expect("a value");
    vector.head.headers.insert(HeaderName::from_static(name), value);
    vector
}

fn without_header(mut vector: Vector, name: &str) -> Vector {
    vector.head.headers.remove(name).expect("it is there");
    vector
}

fn with_authorization(vector: Vector, change: impl FnOnce(String) -> String) -> Vector {
    let value = vector.head.headers["authorization"].to_str().expect("ASCII").to_owned();
    with_header(vector, "authorization", &change(value))
}

fn with_uri(mut vector: Vector, change: impl FnOnce(String) -> String) -> Vector {
    vector.head.uri = change(vector.head.uri.to_string()).parse().expect("a URI");
    vector
}

/// Type and message of the refusal.
fn refusal(vector: &Vector) -> (&'static str, String) {
    let error = judge(vector).expect_err("it is refused");
    assert_eq!(error.status(), 400);
    (error.kind(), error.to_string())
}

fn signed() -> Vector {
    botocore_vector("header")
}

#[test]
fn a_caller_is_who_the_key_stands_for() {
    let vector = signed();
    let root = judge(&vector).expect("it is signed");
    assert_eq!(root.account_id, "123456789012");
    assert_eq!(root.region, "us-east-1");
    assert_eq!(root.principal_arn, "arn:aws:iam::123456789012:root");
    assert_eq!(root.access_key_id.as_deref(), Some(KEY_ID));
    assert!(root.is_root && root.is_administrator && root.policies.is_empty());

    let limited = credentials(
        "user = \"alice\"\ntags = { team = \"red\" }\npolicies = ['''{\"Version\":\
         \"2012-10-17\",\"Statement\":{\"Effect\":\"Allow\",\"Action\":\"kinesis:List*\",\
         \"Resource\":\"*\",\"Condition\":{\"StringEquals\":{\"aws:PrincipalTag/team\":\
         \"red\"}}}}''']",
    );
    let limited = Authenticator::new(limited);
    let alice = limited.authenticate(&vector.head, &vector.body, at(SIGNED_AT_S));
    let alice = alice.expect("it is signed");
    assert_eq!(alice.principal_arn, "arn:aws:iam::123456789012:user/alice");
    assert!(!alice.is_root && !alice.is_administrator);
    let context = Context::new(at(SIGNED_AT_S), &alice.region);
    let list = alice.request("kinesis:ListStreams", "*", "123456789012", context);
    assert_eq!(list.authorize(), Ok(()));
    let put = alice.request("kinesis:PutRecord", "*", "123456789012", context);
    assert!(put.authorize().is_err());
}

#[test]
fn there_must_be_one_signature() {
    let both = with_uri(signed(), |_| "/?X-Amz-Algorithm".to_owned());
    assert_eq!(
        refusal(&both),
        (
            "InvalidSignatureException",
            "Found both 'X-Amz-Algorithm' as a query-string param and 'Authorization' as HTTP \
             header."
                .to_owned()
        )
    );
    let missing =
        ("MissingAuthenticationTokenException", "Missing Authentication Token".to_owned());
    assert_eq!(refusal(&without_header(signed(), "authorization")), missing);
    assert_eq!(refusal(&with_authorization(signed(), |_| " ".to_owned())), missing);
    let no_algorithm = botocore_vector("query");
    let no_algorithm = with_uri(no_algorithm, |uri| uri.replace("X-Amz-Algorithm", "Other"));
    assert_eq!(refusal(&no_algorithm), missing);
}

#[test]
fn every_missing_part_is_named() {
    let nothing = with_authorization(signed(), |_| "X".to_owned());
    let nothing = without_header(nothing, "x-amz-date");
    let parts = [
        "Authorization header requires 'Credential' parameter. ",
        "Authorization header requires 'Signature' parameter. ",
        "Authorization header requires 'SignedHeaders' parameter. ",
        "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. ",
    ];
    let end = |digest: &str| {
        format!("(Hashed with SHA-256 and encoded with Base64) Authorization={digest}")
    };
    let kind = "IncompleteSignatureException";
    assert_eq!(refusal(&nothing), (kind, parts.concat() + &end(DIGEST_OF_X)));
    for (removed, expected) in
        [("Credential", parts[0]), ("Signature", parts[1]), ("SignedHeaders", parts[2])]
    {
        let other = format!("Other{removed}=");
        let vector = with_authorization(signed(), |value| {
            value.replace(&format!(" {removed}="), &format!(" {other}"))
        });
        let (found_kind, message) = refusal(&vector);
        assert_eq!(found_kind, kind);
        assert!(message.starts_with(&format!("{expected}(Hashed")), "{message}");
    }
    let (found_kind, message) = refusal(&without_header(signed(), "x-amz-date"));
    assert_eq!(found_kind, kind);
    assert!(message.starts_with(&format!("{}(Hashed", parts[3])), "{message}");

    let query = with_uri(botocore_vector("query"), |_| "/?X-Amz-Algorithm".to_owned());
    let names = ["Algorithm", "Credential", "Signature", "SignedHeaders", "Date"];
    let parts: String = names
        .iter()
        .map(|name| format!("AWS query-string parameters must include 'X-Amz-{name}'. "))
        .collect();
    assert_eq!(refusal(&query), (kind, parts + "Re-examine the query-string parameters."));
}

#[test]
fn a_part_without_an_equal_sign_is_told_by_its_digest() {
    let vector = with_authorization(signed(), |value| value.replace("Signature=", "Signature"));
    let (kind, message) = refusal(&vector);
    assert_eq!(kind, "IncompleteSignatureException");
    assert!(message.starts_with("Invalid key=value pair (missing equal-sign)"), "{message}");
    let bearer = with_authorization(signed(), |_| "Bearer secret-token".to_owned());
    let (kind, message) = refusal(&bearer);
    assert_eq!(kind, "IncompleteSignatureException");
    assert!(!message.contains("secret-token"), "{message}");
}

#[test]
fn blanks_and_commas_separate_parts() {
    for separator in [", ", ",", " ", "  ,  "] {
        let vector = with_authorization(signed(), |value| value.replace(", ", separator));
        assert!(judge(&vector).is_ok(), "{separator:?}");
    }
}

#[test]
fn dates_have_one_form() {
    let vector = with_header(signed(), "x-amz-date", "201");
    assert_eq!(
        refusal(&vector),
        (
            "IncompleteSignatureException",
            "Date must be in ISO-8601 'basic format'. Got '201'. See \
             http://en.wikipedia.org/wiki/ISO_8601"
                .to_owned()
        )
    );
    // Only the header Date may have HTTP's form.
    let vector = with_header(signed(), "x-amz-date", "Tue, 03 Feb 2026 04:05:06 GMT");
    assert!(refusal(&vector).1.contains("Got 'Tue, 03 Feb 2026"));
    let as_date = with_header(without_header(signed(), "x-amz-date"), "date", "a");
    assert!(refusal(&as_date).1.contains("Got 'a'"));
}

#[test]
fn clocks_may_differ_by_five_minutes() {
    let vector = signed();
    let judge = |seconds| {
        authenticator().authenticate(&vector.head, &vector.body, at(SIGNED_AT_S + seconds))
    };
    for seconds in [-300, 0, 300] {
        assert!(judge(seconds).is_ok(), "{seconds}");
    }
    let late = judge(301).expect_err("it is too old");
    assert_eq!(late.kind(), "InvalidSignatureException");
    assert_eq!(
        late.to_string(),
        "Signature expired: 20260203T040506Z is now earlier than 20260203T040507Z \
         (20260203T041007Z - 5 min.)"
    );
    let early = judge(-301).expect_err("it is too new");
    assert_eq!(early.kind(), "InvalidSignatureException");
    assert_eq!(
        early.to_string(),
        "Signature not yet current: 20260203T040506Z is still later than 20260203T040505Z \
         (20260203T040005Z + 5 min.)"
    );
}

#[test]
fn a_signed_query_expires_when_it_says() {
    let judge = |name: &str, seconds| {
        let vector = botocore_vector(name);
        authenticator().authenticate(&vector.head, &vector.body, at(SIGNED_AT_S + seconds))
    };
    // Signed for 300 and for 3600 seconds.
    assert!(judge("query", 300).is_ok());
    assert!(matches!(judge("query", 301), Err(AuthError::Expired { .. })));
    assert!(judge("query, further parameters", 3600).is_ok());
    let late = judge("query, further parameters", 3601).expect_err("it is too old");
    assert_eq!(
        late.to_string(),
        "Signature expired: 20260203T040506Z is now earlier than 20260203T040507Z \
         (20260203T050507Z - 60 min.)"
    );
    assert!(judge("query", -300).is_ok());
    assert!(matches!(judge("query", -301), Err(AuthError::NotYetCurrent { .. })));
    for expires in ["0", "604801", "-1", "x", "", "%2B5"] {
        let vector = with_uri(botocore_vector("query"), |uri| {
            uri.replace("X-Amz-Expires=300", &format!("X-Amz-Expires={expires}"))
        });
        let (kind, message) = refusal(&vector);
        assert_eq!(kind, "IncompleteSignatureException", "{expires}");
        assert!(message.starts_with("X-Amz-Expires must be"), "{message}");
    }
}

#[test]
fn host_and_target_must_be_signed() {
    for (removed, named) in
        [("host;", "'Host' or ':authority'"), (";x-amz-target", "'X-Amz-Target'")]
    {
        let vector = with_authorization(signed(), |value| value.replace(removed, ""));
        let message = format!("{named} must be a 'SignedHeader' in the AWS Authorization.");
        assert_eq!(refusal(&vector), ("InvalidSignatureException", message));
    }
    let many = vec!["a"; SIGNED_HEADERS_MAX].join(";");
    let vector = with_authorization(signed(), |value| value.replace("host;", &(many + ";")));
    assert_eq!(refusal(&vector).0, "IncompleteSignatureException");
}

#[test]
fn there_is_one_algorithm() {
    let vector = with_authorization(signed(), |value| value.replace("SHA256 ", "SHA25 "));
    let message =
        "Unsupported AWS 'algorithm': 'AWS4-HMAC-SHA25' (only AWS4-HMAC-SHA256 for now). ";
    assert_eq!(refusal(&vector), ("IncompleteSignatureException", message.to_owned()));
}

#[test]
fn credentials_have_a_scope() {
    let scope = format!("{KEY_ID}/20260203/us-east-1/kinesis/aws4_request");
    let with_scope =
        |other: &str| with_authorization(signed(), |value| value.replace(&scope, other));
    let few = with_scope("a/b/c/d");
    let message = "Credential must have exactly 5 slash-delimited elements, e.g. \
                   keyid/date/region/service/term, got 'a/b/c/d'";
    assert_eq!(refusal(&few), ("IncompleteSignatureException", message.to_owned()));
    assert_eq!(refusal(&with_scope("a/b/c/d/e/f")).0, "IncompleteSignatureException");
    assert!(judge(&with_scope(&format!("{scope}//"))).is_ok());
    let wrong = with_scope("a/b/C/d/e");
    assert_eq!(
        refusal(&wrong),
        (
            "InvalidSignatureException",
            "Credential should be scoped to a valid region, not 'C'. Credential should be \
             scoped to correct service: 'kinesis'. Credential should be scoped with a valid \
             terminator: 'aws4_request', not 'e'. Date in Credential scope does not match \
             YYYYMMDD from ISO-8601 version of date from HTTP: 'b' != '20260203', from \
             '20260203T040506Z'."
                .to_owned()
        )
    );
    let elsewhere = authenticator().with_regions(["eu-west-1".to_owned()]);
    let vector = signed();
    let error = elsewhere.authenticate(&vector.head, &vector.body, at(SIGNED_AT_S));
    assert_eq!(
        error.expect_err("another region").to_string(),
        "Credential should be scoped to a valid region, not 'us-east-1'."
    );
    let here = authenticator().with_regions(["us-east-1".to_owned()]);
    assert!(here.authenticate(&vector.head, &vector.body, at(SIGNED_AT_S)).is_ok());
}

#[test]
fn keys_and_session_tokens_must_be_known() {
    let kind = "UnrecognizedClientException";
    let vector = with_authorization(signed(), |value| value.replace(KEY_ID, "AKIAOTHER"));
    let message = "The security token included in the request is invalid.";
    assert_eq!(refusal(&vector), (kind, message.to_owned()));

    // The key has no token and the request has, in either form.
    for name in ["header, session token", "query, session token"] {
        let message = "The security token included in the request is invalid";
        assert_eq!(refusal(&botocore_vector(name)), (kind, message.to_owned()), "{name}");
    }
    // The key has a token, and the request none or another.
    let other = Authenticator::new(credentials("session_token = \"other\""));
    for name in ["header", "query", "header, session token", "query, session token"] {
        let vector = botocore_vector(name);
        let error = other.authenticate(&vector.head, &vector.body, at(SIGNED_AT_S));
        assert_eq!(error.expect_err("not its token"), AuthError::SessionToken, "{name}");
    }
}

#[test]
fn what_is_changed_on_the_way_does_not_match() {
    let header = || botocore_vector("header, values folded and joined");
    let mut body = signed();
    body.body.push(b' ');
    let mut method = signed();
    method.head.method = http::Method::PUT;
    let changed = [
        ("body", body),
        ("method", method),
        ("path", with_uri(signed(), |_| "/x".to_owned())),
        ("query", with_uri(signed(), |_| "/?x=1".to_owned())),
        ("host", with_header(signed(), "host", "localhost:4568")),
        ("target", with_header(signed(), "x-amz-target", "Kinesis_20131202.DeleteStream")),
        ("date", with_header(signed(), "x-amz-date", "20260203T040507Z")),
        ("content type", with_header(signed(), "content-type", "text/plain")),
        ("a header", with_header(header(), "my-header", "a b")),
        ("a missing header", without_header(header(), "my-header")),
        (
            "signature",
            with_authorization(signed(), |mut value| {
                let last = value.pop().expect("a digit");
                value + if last == '0' { "1" } else { "0" }
            }),
        ),
        ("short signature", with_authorization(signed(), |v| v[..v.len() - 1].to_owned())),
        ("region", with_authorization(signed(), |v| v.replace("us-east-1", "us-east-2"))),
        ("signed headers", with_authorization(signed(), |v| v.replace("content-type;", ""))),
        (
            "query value",
            with_uri(botocore_vector("query"), |uri| uri.replace("Limit=1", "Limit=2")),
        ),
        ("expires", with_uri(botocore_vector("query"), |uri| uri.replace("=300", "=301"))),
        (
            "query order is free, a further parameter not",
            with_uri(botocore_vector("query"), |uri| uri + "&x"),
        ),
    ];
    for (what, vector) in changed {
        let error = judge(&vector).expect_err(what);
        assert_eq!(error.kind(), "InvalidSignatureException", "{what}");
        assert!(matches!(error, AuthError::Mismatch { .. }), "{what}: {error}");
    }
}

#[test]
fn another_secret_does_not_match() {
    let vector = signed();
    let document = format!(
        "[[key]]\naccess_key_id = \"{KEY_ID}\"\nsecret_access_key = \"{BOTOCORE_SECRET}.\"\n\
         account_id = \"123456789012\""
    );
    let other = Credentials::from_document(&document).expect("valid credentials");
    let error = Authenticator::new(other).authenticate(&vector.head, &vector.body, at(SIGNED_AT_S));
    assert!(matches!(error, Err(AuthError::Mismatch { .. })));
}

#[test]
fn a_mismatch_says_what_would_have_matched_but_no_token() {
    let mut vector = botocore_vector("header, session token");
    vector.body.push(b'x');
    let message = refusal(&vector).1;
    assert!(message.starts_with(
        "The request signature we calculated does not match the signature you provided. Check \
         your AWS Secret Access Key and signing method. Consult the service documentation for \
         details.\n\nThe Canonical String for this request should have been\n'POST\n/\n\n\
         content-type:application/x-amz-json-1.1\nhost:localhost:4567\n\
         x-amz-date:20260203T040506Z\nx-amz-security-token:(not shown)\n"
    ));
    assert!(message.contains("\n20260203/us-east-1/kinesis/aws4_request\n"), "{message}");
    assert!(!message.contains("token+with/signs"), "{message}");
    let query = with_uri(botocore_vector("query, session token"), |uri| uri + "&x=1");
    let message = refusal(&query).1;
    assert!(message.contains("X-Amz-Security-Token=(not shown)"), "{message}");
    assert!(!message.contains("token%2Bwith"), "{message}");

    let long = with_header(signed(), "content-type", &"x".repeat(60_000));
    assert!(refusal(&long).1.len() < 10_000);
}

#[test]
fn the_payload_must_be_signed() {
    for value in ["UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"] {
        let vector = with_header(signed(), "x-amz-content-sha256", value);
        let (kind, message) = refusal(&vector);
        assert_eq!(kind, "InvalidSignatureException");
        assert!(message.contains(&format!("x-amz-content-sha256 is '{value}'")), "{message}");
    }
    // A hash of something else does not stand for the body's.
    let wrong = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let named = botocore_vector("header, payload hash named");
    let vector = with_header(named, "x-amz-content-sha256", wrong);
    assert!(matches!(judge(&vector), Err(AuthError::Mismatch { .. })));
}

#[test]
fn http_2_has_the_host_in_the_uri() {
    let vector = without_header(signed(), "host");
    let vector = with_uri(vector, |_| "http://localhost:4567/".to_owned());
    assert!(judge(&vector).is_ok());
    let other = with_uri(vector, |_| "http://localhost:4568/".to_owned());
    assert!(matches!(judge(&other), Err(AuthError::Mismatch { .. })));
}

#[test]
fn a_reload_takes_effect_at_once() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("credentials.toml");
    let write = |secret: &str| {
        let document = format!(
            "[[key]]\naccess_key_id = \"{KEY_ID}\"\nsecret_access_key = \"{secret}\"\n\
             account_id = \"123456789012\"\n"
        );
        std::fs::write(&path, document).expect("it can be written");
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, mode).expect("it is ours");
    };
    write(BOTOCORE_SECRET);
    let credentials = Credentials::load(&path).expect("valid credentials");
    let authenticator = Authenticator::new(credentials.clone());
    let vector = signed();
    let judge = || authenticator.authenticate(&vector.head, &vector.body, at(SIGNED_AT_S));
    assert!(judge().is_ok() && judge().is_ok());
    write("another-secret-of-another-length");
    assert!(credentials.refresh().expect("valid credentials"));
    assert!(matches!(judge(), Err(AuthError::Mismatch { .. })));
}

#[test]
fn without_authentication_everybody_is_root() {
    let open = Authenticator::open("210987654321", "eu-west-1").expect("an account");
    let mut unsigned = without_header(signed(), "authorization");
    unsigned.body.push(b'x');
    let query = botocore_vector("query");
    for (vector, region) in [
        (signed(), "us-east-1"),
        (query, "us-east-1"),
        (unsigned, "eu-west-1"),
        (with_authorization(signed(), |v| v.replace("us-east-1", "US")), "eu-west-1"),
        (with_authorization(signed(), |_| "Bearer x".to_owned()), "eu-west-1"),
    ] {
        let caller = open.authenticate(&vector.head, &vector.body, at(0));
        let caller = caller.expect("everybody is let in");
        assert_eq!(caller.region, region);
        assert_eq!(caller.principal_arn, "arn:aws:iam::210987654321:root");
        assert!(caller.is_root && caller.is_administrator);
        assert_eq!(caller.access_key_id, None);
    }
    assert!(Authenticator::open("1", "eu-west-1").is_err());
}

proptest! {
    #[test]
    fn any_request_is_judged(
        authorization in any::<Option<Vec<u8>>>(),
        parts in "(AWS4-HMAC-SHA256 )?(Credential=[a-zA-Z0-9/äé%]{0,30}[, ]?)?(SignedHeaders=\
                  [a-z;-]{0,20},)?( ?Signature=[0-9a-f]{0,64})?",
        date in "[0-9TZ]{0,17}|.{0,10}",
        query in "(X-Amz-Algorithm(=[A-Z0-9-]{0,20})?&)?(X-Amz-[A-Z][a-z]{3,9}=.{0,20}&?){0,5}",
        body in any::<Vec<u8>>(),
    ) {
        let base = signed();
        let mut values: Vec<Vec<u8>> = vec![parts.into_bytes()];
        values.extend(authorization);
        for value in values {
            let mut head = base.head.clone();
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                head.headers.insert("authorization", value);
            }
            if let Ok(value) = HeaderValue::from_bytes(date.as_bytes()) {
                head.headers.insert("x-amz-date", value);
            }
            prop_assert!(authenticator().authenticate(&head, &body, at(SIGNED_AT_S)).is_err());
            if let Ok(uri) = format!("/?{query}").parse() {
                head.uri = uri;
                head.headers.remove("authorization");
                let judged = authenticator().authenticate(&head, &body, at(SIGNED_AT_S));
                prop_assert!(judged.is_err());
            }
        }
    }

    #[test]
    fn signed_requests_are_let_in_in_whatever_order_their_query_comes(seed in any::<u64>()) {
        let vector = with_uri(botocore_vector("header, query of any order"), |uri| {
            let mut pairs: Vec<&str> = uri.trim_start_matches("/?").split('&').collect();
            let by = usize::try_from(seed % 7).unwrap_or(0);
            pairs.rotate_left(by);
            if seed % 2 == 0 { pairs.reverse(); }
            format!("/?{}", pairs.join("&"))
        });
        prop_assert!(judge(&vector).is_ok());
    }
}

#[test]
fn every_vector_of_botocore_has_a_name_of_its_own() {
    let names: std::collections::HashSet<String> =
        botocore().into_iter().map(|vector| vector.name).collect();
    assert_eq!(names.len(), botocore().len());
}
