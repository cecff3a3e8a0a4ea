//! Registering consumers.

use std::time::Instant;

use serde_json::{Value, json};
use thalweg_router::kinesis::service::ServiceSettings;

use crate::stream::{create, pause};
use crate::support::PATIENCE;
use crate::support::router::{RouterOptions, TestRouter};

const STREAM: &str = "arn:aws:kinesis:us-east-1:123456789012:stream/s";

/// Registers a consumer and waits until it is active; answers its ARN.
pub(crate) async fn register(router: &TestRouter, name: &str) -> String {
    let client = router.client();
    let input = json!({ "StreamARN": STREAM, "ConsumerName": name });
    let output = client.call("RegisterStreamConsumer", input).await;
    assert_eq!(output["Consumer"]["ConsumerStatus"], "CREATING");
    let arn = output["Consumer"]["ConsumerARN"].as_str().expect("a text").to_owned();
    let started = Instant::now();
    loop {
        let input = json!({ "ConsumerARN": arn });
        let output = client.call("DescribeStreamConsumer", input).await;
        if output["ConsumerDescription"]["ConsumerStatus"] == "ACTIVE" {
            return arn;
        }
        assert!(started.elapsed() < PATIENCE, "{name} does not become active: {output}");
        pause().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_lives_and_is_found_by_its_arn_or_its_name() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    let client = router.client();
    let arn = register(&router, "c").await;
    assert!(arn.starts_with(&format!("{STREAM}/consumer/c:")), "{arn}");
    let by_arn = client.call("DescribeStreamConsumer", json!({ "ConsumerARN": arn })).await;
    assert_eq!(by_arn["ConsumerDescription"]["StreamARN"], STREAM);
    let named = json!({ "StreamARN": STREAM, "ConsumerName": "c" });
    assert_eq!(client.call("DescribeStreamConsumer", named.clone()).await, by_arn);
    let all = json!({ "StreamARN": STREAM, "ConsumerName": "c", "ConsumerARN": arn });
    assert_eq!(client.call("DescribeStreamConsumer", all).await, by_arn);
    let message = client.fail("RegisterStreamConsumer", named.clone(), "ResourceInUseException");
    assert_eq!(message.await, "Consumer c under stream s already exists for account 123456789012.");

    client.call("DeregisterStreamConsumer", named.clone()).await;
    let started = Instant::now();
    let gone = loop {
        let found = client.try_call("DescribeStreamConsumer", named.clone()).await;
        match found {
            Ok(output) => {
                assert_eq!(output["ConsumerDescription"]["ConsumerStatus"], "DELETING");
            }
            Err(failure) => break failure,
        }
        assert!(started.elapsed() < PATIENCE, "the consumer does not go");
        pause().await;
    };
    assert_eq!(
        (gone.kind.as_str(), gone.message.as_str()),
        ("ResourceNotFoundException", "Consumer c, account 123456789012 not found.")
    );
    let created_s = arn.rsplit(':').next().expect("the seconds");
    let input = json!({ "ConsumerARN": arn });
    assert_eq!(
        client.fail("DeregisterStreamConsumer", input, "ResourceNotFoundException").await,
        format!(
            "Consumer c with creation timestamp {created_s} under stream: s, account \
             123456789012 not found."
        )
    );
}

/// A consumer that was registered in the second in which the one before it was, had the ARN of that
/// one, and with it whatever policies of identities say of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_consumers_of_a_name_have_the_same_arn() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    let client = router.client();
    let mut arns = Vec::new();
    for _ in 0..3 {
        let arn = register(&router, "c").await;
        assert!(!arns.contains(&arn), "{arn} again");
        client.call("DeregisterStreamConsumer", json!({ "ConsumerARN": arn })).await;
        let started = Instant::now();
        let named = json!({ "StreamARN": STREAM, "ConsumerName": "c" });
        while client.try_call("DescribeStreamConsumer", named.clone()).await.is_ok() {
            assert!(started.elapsed() < PATIENCE, "the consumer does not go");
            pause().await;
        }
        arns.push(arn);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_are_named_without_contradiction() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    let arn = register(&router, "c").await;
    let client = router.client();
    for input in [
        json!({}),
        json!({ "StreamARN": STREAM }),
        json!({ "ConsumerName": "c" }),
        json!({ "ConsumerARN": arn, "ConsumerName": "d" }),
        json!({ "ConsumerARN": arn, "StreamARN": format!("{STREAM}2") }),
    ] {
        let kind = "InvalidArgumentException";
        client.fail("DescribeStreamConsumer", input.clone(), kind).await;
        client.fail("DeregisterStreamConsumer", input, kind).await;
    }
    let other = json!({ "StreamARN": format!("{STREAM}2"), "ConsumerName": "c" });
    let missing = client.fail("RegisterStreamConsumer", other, "ResourceNotFoundException");
    assert_eq!(missing.await, "Stream s2 under account 123456789012 not found.");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_are_listed_page_by_page() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    create(&router, "other", 1, 1024).await;
    let client = router.client();
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        register(&router, name).await;
    }
    let list = |token: Option<&str>, most: u32| {
        let mut input = json!({ "StreamARN": STREAM, "MaxResults": most });
        if let Some(token) = token {
            input["NextToken"] = json!(token);
        }
        input
    };
    let names_of = |output: &Value| -> Vec<String> {
        let consumers = output["Consumers"].as_array().expect("a list");
        let name = |consumer: &Value| consumer["ConsumerName"].as_str().expect("a text").to_owned();
        consumers.iter().map(name).collect()
    };
    let (mut found, mut token) = (Vec::new(), None);
    for count in [2, 2, 1] {
        let output = client.call("ListStreamConsumers", list(token.as_deref(), 2)).await;
        assert_eq!(names_of(&output).len(), count);
        found.extend(names_of(&output));
        token = output["NextToken"].as_str().map(str::to_owned);
    }
    assert_eq!((found.as_slice(), token), (&names.map(str::to_owned)[..], None));
    let all = client.call("ListStreamConsumers", list(None, 5)).await;
    assert_eq!((names_of(&all).len(), all.get("NextToken")), (5, None));

    let page = client.call("ListStreamConsumers", list(None, 1)).await;
    let token = page["NextToken"].as_str().expect("more follow");
    let created_s = router.stream("s").record.created_ms / 1000;
    let mut both = list(Some(token), 1);
    both["StreamCreationTimestamp"] = json!(created_s);
    client.fail("ListStreamConsumers", both, "InvalidArgumentException").await;
    let of_then = json!({ "StreamARN": STREAM, "StreamCreationTimestamp": created_s });
    client.call("ListStreamConsumers", of_then).await;
    let of_before = json!({ "StreamARN": STREAM, "StreamCreationTimestamp": created_s - 10 });
    client.fail("ListStreamConsumers", of_before, "ResourceNotFoundException").await;
    let elsewhere = json!({
        "StreamARN": "arn:aws:kinesis:us-east-1:123456789012:stream/other",
        "NextToken": token,
    });
    client.fail("ListStreamConsumers", elsewhere, "InvalidArgumentException").await;
    client.fail("ListStreamConsumers", list(Some("AAAA"), 1), "InvalidArgumentException").await;
    router.advance(std::time::Duration::from_secs(301));
    let late = list(Some(token), 1);
    client.fail("ListStreamConsumers", late, "ExpiredNextTokenException").await;
}

/// Of many who register at once no more succeed than there may be consumers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_has_twenty_consumers_at_most() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    for number in 0..18 {
        register(&router, &format!("c{number}")).await;
    }
    let directory = router.stop().await;
    // Now with limits, without which there is no most.
    let options = RouterOptions {
        service: ServiceSettings { limits: true, ..ServiceSettings::default() },
        ..RouterOptions::default()
    };
    let router = TestRouter::start_in(directory, options).await;
    let at_once = ["d", "e", "f", "g"].map(|name| {
        let client = router.client();
        let input = json!({ "StreamARN": STREAM, "ConsumerName": name });
        tokio::spawn(async move { client.try_call("RegisterStreamConsumer", input).await })
    });
    let mut registered = 0;
    for outcome in at_once {
        match outcome.await.expect("it does not panic") {
            Ok(_) => registered += 1,
            Err(failure) => assert_eq!(failure.kind, "LimitExceededException", "{failure:?}"),
        }
    }
    assert_eq!((registered, router.stream("s").consumers().len()), (2, 20));
}
