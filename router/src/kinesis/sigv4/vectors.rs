//! Signatures made by others: the examples of AWS's public test suite, and requests that the real
//! botocore signed (`router/golden/make_sigv4.py`).
//!
//! Of the suite, those are left out that HTTP does not let through (a header folded over lines, a
//! blank in a path), those of S3, whose paths are not normalized, and those of SigV4a.

use std::time::{Duration, UNIX_EPOCH};

use http::request::Parts;
use serde::Deserialize;

use crate::kinesis::credentials::Credentials;
use crate::kinesis::sigv4::{AuthError, Authenticator};

/// The secret of botocore's vectors and of the suite: the documentation's example.
pub(super) const BOTOCORE_SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
/// When botocore's vectors were signed: 2026-02-03T04:05:06Z.
pub(super) const SIGNED_AT_S: i64 = 1_770_091_506;

const BOTOCORE: &str = include_str!("../../../golden/sigv4-botocore.json");
/// When the suite's examples were signed: 2015-08-30T12:36:00Z.
const SUITE_SIGNED_AT_S: u64 = 1_440_938_160;
const SUITE_TOKEN: &str = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267";

/// A signed request.
pub(super) struct Vector {
    pub(super) name: String,
    pub(super) accepted: bool,
    pub(super) session_token: Option<String>,
    pub(super) head: Parts,
    pub(super) body: Vec<u8>,
}

#[derive(Deserialize)]
struct Raw {
    name: String,
    accepted: bool,
    session_token: Option<String>,
    method: String,
    uri: String,
    headers: Vec<(String, String)>,
    body: String,
}

/// All requests that botocore signed.
pub(super) fn botocore() -> Vec<Vector> {
    let raw: Vec<Raw> = serde_json::from_str(BOTOCORE).expect("the vectors are valid");
    raw.into_iter().map(Vector::from).collect()
}

/// The request of that name that botocore signed.
pub(super) fn botocore_vector(name: &str) -> Vector {
    botocore().into_iter().find(|vector| vector.name == name).expect("there is such a vector")
}

impl From<Raw> for Vector {
    fn from(raw: Raw) -> Vector {
        let headers = raw.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        Vector {
            name: raw.name,
            accepted: raw.accepted,
            session_token: raw.session_token,
            head: head(&raw.method, &raw.uri, headers),
            body: raw.body.into_bytes(),
        }
    }
}

fn head<'a>(
    method: &str,
    uri: &str,
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Parts {
    let mut request = http::Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request.body(()).expect("a request").into_parts().0
}

fn authenticator(access_key_id: &str, session_token: Option<&str>) -> Authenticator {
    let token = session_token.map_or(String::new(), |token| format!("session_token = \"{token}\""));
    let document = format!(
        "[[key]]\naccess_key_id = \"{access_key_id}\"\nsecret_access_key = \"{BOTOCORE_SECRET}\"\n\
         account_id = \"123456789012\"\n{token}"
    );
    Authenticator::new(Credentials::from_document(&document).expect("valid credentials"))
}

#[test]
fn what_botocore_signs_is_let_in() {
    let now = UNIX_EPOCH + Duration::from_secs(SIGNED_AT_S.unsigned_abs());
    let vectors = botocore();
    assert!(vectors.iter().any(|vector| vector.session_token.is_some()));
    for vector in vectors {
        let token = vector.session_token.as_deref();
        let authenticator = authenticator("AKIATHALWEGEXAMPLE01", token);
        let judged = authenticator.authenticate(&vector.head, &vector.body, now);
        assert_eq!(judged.is_ok(), vector.accepted, "{}: {:?}", vector.name, judged.err());
    }
}

/// An example of the suite: all are signed with `host` and `x-amz-date` and the headers named here.
struct Example {
    name: &'static str,
    request: &'static str,
    headers: &'static [(&'static str, &'static str)],
    /// The names of `headers` as they are signed, sorted into `host` and `x-amz-date`.
    signed_headers: &'static str,
    body: &'static str,
    signature: &'static str,
}

const PLAIN: &str = "host;x-amz-date";
const WITH_MY_HEADER: &str = "host;my-header1;x-amz-date";
const UNRESERVED_PATH: &str =
    "GET /-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const UNRESERVED_QUERY: &str = "GET /?-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrst\
                                uvwxyz=-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrst\
                                uvwxyz";
const FORM: &str = "application/x-www-form-urlencoded";
const FORM_HASH: &str = "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e";

const EXAMPLES: &[Example] = &[
    Example {
        name: "get-vanilla",
        request: "GET /",
        headers: &[],
        signed_headers: PLAIN,
        body: "",
        signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    },
    Example {
        name: "get-vanilla-empty-query-key",
        request: "GET /?Param1=value1",
        headers: &[],
        signed_headers: PLAIN,
        body: "",
        signature: "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb",
    },
    Example {
        name: "get-vanilla-query-order-key-case",
        request: "GET /?Param2=value2&Param1=value1",
        headers: &[],
        signed_headers: PLAIN,
        body: "",
        signature: "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
    },
    Example {
        name: "get-vanilla-query-order-encoded",
        request: "GET /?Param-3=Value3&Param=Value2&%E1%88%B4=Value1",
        headers: &[],
        signed_headers: PLAIN,
        body: "",
        signature: "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac",
    },
    Example {
        name: "get-vanilla-query-unreserved",
        request: UNRESERVED_QUERY,
        headers: &[],
        signed_headers: PLAIN,
        body: "",
        signature: "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197",
    },
    Example {
        name: "get-vanilla-utf8-query",
        request: "GET /?ሴ=bar",
        headers: &[],
        signed_headers: PLAIN,
        body: "",
        signature: "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04",
    },
    Example {
        name: "get-unreserved",
        request: UNRESERVED_PATH,
        headers: &[],
        signed_headers: PLAIN,
        body: "",
        signature: "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
    },
    Example {
        name: "get-utf8",
        request: "GET /ሴ",
        headers: &[],
        signed_headers: PLAIN,
        body: "",
        signature: "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85",
    },
    Example {
        name: "get-slash-dot-slash-normalized",
        request: "GET /./",
        headers: &[],
        signed_headers: PLAIN,
        body: "",
        signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    },
    Example {
        name: "get-slashes-normalized",
        request: "GET //example//",
        headers: &[],
        signed_headers: PLAIN,
        body: "",
        signature: "9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84",
    },
    Example {
        name: "get-slash-pointless-dot-normalized",
        request: "GET /./example",
        headers: &[],
        signed_headers: PLAIN,
        body: "",
        signature: "ef75d96142cf21edca26f06005da7988e4f8dc83a165a80865db7089db637ec5",
    },
    Example {
        name: "get-relative-relative-normalized",
        request: "GET /example1/example2/../..",
        headers: &[],
        signed_headers: PLAIN,
        body: "",
        signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    },
    Example {
        name: "get-header-key-duplicate",
        request: "GET /",
        headers: &[("My-Header1", "value2"), ("My-Header1", "value2"), ("My-Header1", "value1")],
        signed_headers: WITH_MY_HEADER,
        body: "",
        signature: "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
    },
    Example {
        name: "get-header-value-order",
        request: "GET /",
        headers: &[
            ("My-Header1", "value4"),
            ("My-Header1", "value1"),
            ("My-Header1", "value3"),
            ("My-Header1", "value2"),
        ],
        signed_headers: WITH_MY_HEADER,
        body: "",
        signature: "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01",
    },
    Example {
        name: "get-header-value-trim",
        request: "GET /",
        headers: &[("My-Header1", " value1"), ("My-Header2", " \"a   b   c\"")],
        signed_headers: "host;my-header1;my-header2;x-amz-date",
        body: "",
        signature: "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
    },
    Example {
        name: "get-vanilla-with-session-token",
        request: "GET /",
        headers: &[("X-Amz-Security-Token", SUITE_TOKEN)],
        signed_headers: "host;x-amz-date;x-amz-security-token",
        body: "",
        signature: "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8",
    },
    Example {
        name: "post-vanilla",
        request: "POST /",
        headers: &[],
        signed_headers: PLAIN,
        body: "",
        signature: "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
    },
    Example {
        name: "post-vanilla-query",
        request: "POST /?Param1=value1",
        headers: &[],
        signed_headers: PLAIN,
        body: "",
        signature: "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11",
    },
    Example {
        name: "post-header-key-sort",
        request: "POST /",
        headers: &[("My-Header1", "value1")],
        signed_headers: WITH_MY_HEADER,
        body: "",
        signature: "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
    },
    Example {
        name: "post-header-value-case",
        request: "POST /",
        headers: &[("My-Header1", "VALUE1")],
        signed_headers: WITH_MY_HEADER,
        body: "",
        signature: "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d",
    },
    Example {
        name: "post-x-www-form-urlencoded",
        request: "POST /",
        headers: &[
            ("Content-Type", FORM),
            ("Content-Length", "13"),
            ("X-Amz-Content-Sha256", FORM_HASH),
        ],
        signed_headers: "content-length;content-type;host;x-amz-content-sha256;x-amz-date",
        body: "Param1=value1",
        signature: "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b",
    },
];

const QUERY_EXAMPLES: &[Example] = &[
    Example {
        name: "get-vanilla-query-order-key-case",
        request: "GET /?Param2=value2&Param1=value1",
        headers: &[],
        signed_headers: "host",
        body: "",
        signature: "86012e2c9ad4d77369f5d81c11f75158aae4f895a085212cc6d3f923d300bed5",
    },
    Example {
        name: "get-utf8",
        request: "GET /ሴ?",
        headers: &[],
        signed_headers: "host",
        body: "",
        signature: "10eae3f14a260bd3911cc6d008d3c576d143b05b62f09782a7a4b37f52178e44",
    },
    Example {
        name: "post-vanilla",
        request: "POST /?",
        headers: &[],
        signed_headers: "host",
        body: "",
        signature: "2ce6e6d2e0cf2f9d1b55fafec88cd20574c31dc2e7631979f71ba2310083e95b",
    },
    Example {
        name: "post-x-www-form-urlencoded",
        request: "POST /?",
        headers: &[
            ("Content-Type", FORM),
            ("Content-Length", "13"),
            ("X-Amz-Content-Sha256", FORM_HASH),
        ],
        signed_headers: "content-length%3Bcontent-type%3Bhost%3Bx-amz-content-sha256",
        body: "Param1=value1",
        signature: "c2348f57d08c84939944d6c878b3f7be56316f8e7fd6817e81eded279a362d69",
    },
];

impl Example {
    fn judge(&self, in_query: bool) -> Result<(), AuthError> {
        let Example { request, signed_headers, signature, .. } = self;
        let (method, uri) = request.split_once(' ').expect("a method and a URI");
        let date = "20150830T123600Z";
        let scope = "AKIDEXAMPLE/20150830/us-east-1/service/aws4_request";
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={signed_headers}, \
             Signature={signature}"
        );
        let mut headers = vec![("Host", "example.amazonaws.com")];
        let mut uri = uri.to_owned();
        if in_query {
            uri += &format!(
                "&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}&X-Amz-Date={date}\
                 &X-Amz-SignedHeaders={signed_headers}&X-Amz-Expires=3600\
                 &X-Amz-Signature={signature}",
                scope.replace('/', "%2F")
            );
        } else {
            headers.extend([("X-Amz-Date", date), ("Authorization", &authorization)]);
        }
        headers.extend_from_slice(self.headers);
        let head = head(method, &uri, headers);
        let token = self.headers.iter().find(|(name, _)| *name == "X-Amz-Security-Token");
        let mut authenticator = authenticator("AKIDEXAMPLE", token.map(|(_, token)| *token));
        authenticator.service = "service";
        let now = UNIX_EPOCH + Duration::from_secs(SUITE_SIGNED_AT_S);
        authenticator.authenticate(&head, self.body.as_bytes(), now).map(|_| ())
    }
}

#[test]
fn the_examples_of_the_public_suite_verify() {
    for example in EXAMPLES {
        assert_eq!(example.judge(false), Ok(()), "{}", example.name);
    }
    for example in QUERY_EXAMPLES {
        assert_eq!(example.judge(true), Ok(()), "{} in the query", example.name);
    }
}
