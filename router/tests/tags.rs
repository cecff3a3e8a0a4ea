//! Tags and resource policies, through the whole router.

mod support;

use serde_json::{Value, json};
use support::router::{RouterOptions, TestRouter};

const INVALID: &str = "InvalidArgumentException";
const NOT_FOUND: &str = "ResourceNotFoundException";
const DENIED: &str = "AccessDeniedException";
const STREAM: &str = "arn:aws:kinesis:us-east-1:123456789012:stream/orders";

fn pairs(answer: &Value) -> Vec<(&str, &str)> {
    let tags = answer["Tags"].as_array().expect("a list").iter();
    let text = Value::as_str;
    tags.map(|tag| text(&tag["Key"]).zip(text(&tag["Value"])).expect("a key and a value")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streams_tags_are_added_listed_and_removed() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("orders", 1).await;
    let add = |tags: Value| json!({ "StreamName": "orders", "Tags": tags });
    let list = async |more: Value| {
        let mut input = more;
        input["StreamName"] = json!("orders");
        client.call("ListTagsForStream", input).await
    };
    client.call("AddTagsToStream", add(json!({ "b": "2", "a": "1", "c": "" }))).await;
    client.call("AddTagsToStream", add(json!({ "b": "two words" }))).await;
    let answer = list(json!({})).await;
    assert_eq!(pairs(&answer), [("a", "1"), ("b", "two words"), ("c", "")]);
    assert_eq!(answer["HasMoreTags"], false);
    let answer = list(json!({ "Limit": 1, "ExclusiveStartTagKey": "a" })).await;
    assert_eq!(pairs(&answer), [("b", "two words")]);
    assert_eq!(answer["HasMoreTags"], true);
    let remove = json!({ "StreamName": "orders", "TagKeys": ["b", "never there"] });
    client.call("RemoveTagsFromStream", remove).await;
    let by_arn = json!({ "ResourceARN": STREAM });
    assert_eq!(pairs(&client.call("ListTagsForResource", by_arn).await), [("a", "1"), ("c", "")]);

    let message = client.fail("AddTagsToStream", add(json!({ "a": "1%" })), INVALID).await;
    assert!(message.contains("to stream orders under account 123456789012 because"), "{message}");
    client.fail("AddTagsToStream", add(json!({ "a!": "1" })), INVALID).await;
    client.fail("AddTagsToStream", add(json!({ "aws:a": "1" })), INVALID).await;
    let many: serde_json::Map<String, Value> =
        (0..49).map(|number| (format!("n{number}"), json!("v"))).collect();
    let message = client.fail("AddTagsToStream", add(many.clone().into()), INVALID).await;
    assert!(message.contains("more than 50 tags"), "{message}");
    let fewer: serde_json::Map<String, Value> = many.into_iter().take(48).collect();
    client.call("AddTagsToStream", add(fewer.into())).await;
    assert_eq!(pairs(&list(json!({})).await).len(), 50);
    let none = json!({ "StreamName": "none", "Tags": { "a": "b" } });
    client.fail("AddTagsToStream", none, NOT_FOUND).await;
}

/// Whichever operation brings them, tags of a new resource are judged alike.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tags_of_what_is_new_are_judged_as_those_that_are_added() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("orders", 1).await;
    let many = |count: u32| -> Value {
        (0..count).map(|number| (format!("n{number}"), json!("v"))).collect()
    };
    let wrong = [
        (many(51), "cannot have more than 50 tags"),
        (json!({ "aws:a": "b" }), "begins with aws:, which is reserved"),
        (json!({ "a": "?" }), "invalid characters"),
        (json!({ "a": "50%" }), "illegal characters"),
    ];
    let stream =
        |name: &str, tags: &Value| json!({ "StreamName": name, "ShardCount": 1, "Tags": tags });
    let consumer = |name: &str, tags: &Value| json!({ "StreamARN": STREAM, "ConsumerName": name, "Tags": tags });
    for (tags, told) in &wrong {
        for (operation, input) in [
            ("CreateStream", stream("new", tags)),
            ("RegisterStreamConsumer", consumer("new", tags)),
            ("TagResource", json!({ "ResourceARN": STREAM, "Tags": tags })),
        ] {
            let message = client.fail(operation, input, INVALID).await;
            assert!(message.contains(told), "{operation}: {message}");
        }
    }
    client.call("CreateStream", stream("new", &many(50))).await;
    let output = client.call("RegisterStreamConsumer", consumer("new", &many(50))).await;
    let arn = output["Consumer"]["ConsumerARN"].clone();
    let answer = client.call("ListTagsForResource", json!({ "ResourceARN": arn })).await;
    assert_eq!(pairs(&answer).len(), 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_that_are_not_there_are_told_so() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("orders", 1).await;
    for (arn, kind) in [
        ("arn:aws:kinesis:us-east-1:123456789012:stream/none".to_owned(), NOT_FOUND),
        (format!("{STREAM}/consumer/none:17"), NOT_FOUND),
        ("arn:aws:kinesis:us-east-1:123456789012:queue/jobs".to_owned(), NOT_FOUND),
        (format!("{STREAM}/consumer/none"), INVALID),
    ] {
        let inputs = [
            ("ListTagsForResource", json!({ "ResourceARN": arn })),
            ("TagResource", json!({ "ResourceARN": arn, "Tags": { "a": "b" } })),
            ("UntagResource", json!({ "ResourceARN": arn, "TagKeys": ["a"] })),
            ("GetResourcePolicy", json!({ "ResourceARN": arn })),
            ("PutResourcePolicy", json!({ "ResourceARN": arn, "Policy": "{}" })),
            ("DeleteResourcePolicy", json!({ "ResourceARN": arn })),
        ];
        for (operation, input) in inputs {
            client.fail(operation, input, kind).await;
        }
    }
}

/// Two accounts; of the second, a user who may do anything as far as their own account goes.
const CREDENTIALS: &str = r#"
[[key]]
access_key_id = "OWNEROWNEROWNEROWNER"
secret_access_key = "owner-owner-owner-owner-owner-owner-owne"
account_id = "123456789012"

[[key]]
access_key_id = "GUESTGUESTGUESTGUEST"
secret_access_key = "guest-guest-guest-guest-guest-guest-gues"
account_id = "210987654321"
user = "guest"

[[key]]
access_key_id = "TAGGERTAGGERTAGGERTA"
secret_access_key = "tagger-tagger-tagger-tagger-tagger-tagge"
account_id = "123456789012"
user = "tagger"
policies = ['''{"Statement": [
    {"Effect": "Allow", "Action": "kinesis:AddTagsToStream", "Resource": "*",
     "Condition": {"StringEquals": {"aws:RequestTag/team": "red"}}},
    {"Effect": "Allow", "Action": ["kinesis:UntagResource", "kinesis:RemoveTagsFromStream"],
     "Resource": "*", "Condition": {
        "ForAnyValue:StringEquals": {"aws:TagKeys": ["temporary", "shared"]},
        "StringEqualsIfExists": {"aws:RequestTag/shared": "yes"}}},
    {"Effect": "Allow", "Action": "kinesis:ListShards", "Resource": "*",
     "Condition": {"StringEquals": {"aws:ResourceTag/team": "red"}}}
]}''']
"#;

async fn with_accounts() -> TestRouter {
    let credentials = Some(CREDENTIALS.to_owned());
    TestRouter::start_with(RouterOptions { credentials, ..RouterOptions::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_lets_another_account_in_until_it_goes() {
    let router = with_accounts().await;
    let owner = router
        .client()
        .with_key("OWNEROWNEROWNEROWNER", "owner-owner-owner-owner-owner-owner-owne");
    let guest = router
        .client()
        .with_key("GUESTGUESTGUESTGUEST", "guest-guest-guest-guest-guest-guest-gues");
    owner.call("CreateStream", json!({ "StreamName": "orders", "ShardCount": 1 })).await;
    owner.wait_until_active("orders").await;
    let list = json!({ "StreamARN": STREAM });
    guest.fail("ListShards", list.clone(), DENIED).await;
    let of = json!({ "ResourceARN": STREAM });
    owner.fail("GetResourcePolicy", of.clone(), NOT_FOUND).await;
    owner.fail("DeleteResourcePolicy", of.clone(), NOT_FOUND).await;

    let policy = json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Effect": "Allow",
            "Principal": { "AWS": "arn:aws:iam::210987654321:user/guest" },
            "Action": ["kinesis:ListShards", "kinesis:GetResourcePolicy"],
            "Resource": STREAM,
        }],
    })
    .to_string();
    let put = json!({ "ResourceARN": STREAM, "Policy": policy });
    guest.fail("PutResourcePolicy", put.clone(), DENIED).await;
    owner.call("PutResourcePolicy", put).await;
    guest.call("ListShards", list.clone()).await;
    guest.fail("SplitShard", split(), DENIED).await;
    for client in [&owner, &guest] {
        assert_eq!(client.call("GetResourcePolicy", of.clone()).await["Policy"], policy.as_str());
    }
    for wrong in
        ["", "no policy", r#"{"Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}"#]
    {
        let put = json!({ "ResourceARN": STREAM, "Policy": wrong });
        let message = owner.fail("PutResourcePolicy", put, INVALID).await;
        assert!(message.starts_with("Invalid policy document: "), "{message}");
    }
    owner.call("DeleteResourcePolicy", of.clone()).await;
    guest.fail("ListShards", list, DENIED).await;
    owner.fail("GetResourcePolicy", of, NOT_FOUND).await;
}

fn split() -> Value {
    json!({ "StreamARN": STREAM, "ShardToSplit": "0", "NewStartingHashKey": "9" })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tags_decide_where_policies_ask_for_them() {
    let router = with_accounts().await;
    let owner = router
        .client()
        .with_key("OWNEROWNEROWNEROWNER", "owner-owner-owner-owner-owner-owner-owne");
    let tagger = router
        .client()
        .with_key("TAGGERTAGGERTAGGERTA", "tagger-tagger-tagger-tagger-tagger-tagge");
    owner.call("CreateStream", json!({ "StreamName": "orders", "ShardCount": 1 })).await;
    owner.wait_until_active("orders").await;
    let list = json!({ "StreamName": "orders" });
    tagger.fail("ListShards", list.clone(), DENIED).await;
    let add = |team: &str| json!({ "StreamName": "orders", "Tags": { "team": team } });
    tagger.fail("AddTagsToStream", add("blue"), DENIED).await;
    tagger.call("AddTagsToStream", add("red")).await;
    tagger.call("ListShards", list.clone()).await;
    owner.call("AddTagsToStream", add("blue")).await;
    tagger.fail("ListShards", list, DENIED).await;
    // What removes tags names their keys, and no value that a condition could be held against.
    let untag = |key: &str| json!({ "ResourceARN": STREAM, "TagKeys": [key] });
    tagger.fail("UntagResource", untag("team"), DENIED).await;
    tagger.call("UntagResource", untag("temporary")).await;
    tagger.call("UntagResource", untag("shared")).await;
    let remove = |key: &str| json!({ "StreamName": "orders", "TagKeys": [key] });
    tagger.fail("RemoveTagsFromStream", remove("team"), DENIED).await;
    tagger.call("RemoveTagsFromStream", remove("shared")).await;
}
