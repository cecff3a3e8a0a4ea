//! Not committed: answers of fixed form for real SDKs.
#![allow(missing_docs, unreachable_pub)]
use std::time::Duration;
use thalweg_router::kinesis::{error::*, event_stream::*, server::*};
struct A;
impl Api for A {
    fn knows(&self, _: &str) -> bool {
        true
    }
    async fn call(&self, r: ApiRequest) -> Result<ApiResponse, ApiError> {
        eprintln!(
            "{r:?} {:?} {:?} body={:?}",
            r.head.version,
            r.head.headers.get("user-agent"),
            &r.body[..r.body.len().min(80)]
        );
        match r.operation.as_str() {
            "AddTagsToStream" | "CreateStream" => Ok(ApiResponse::Whole(Default::default())),
            "ListStreams" => Ok(ApiResponse::Whole(match r.protocol {
                Protocol::Json => r#"{"StreamNames":["a"],"HasMoreStreams":false}"#.into(),
                Protocol::Cbor => {
                    #[derive(serde::Serialize)] #[allow(non_snake_case)] struct L { StreamNames: Vec<&'static str>, HasMoreStreams: bool }
                    let mut v = vec![]; ciborium::into_writer(&L { StreamNames: vec!["a"], HasMoreStreams: false }, &mut v).unwrap(); v.into()
                }
            })),
            "SubscribeToShard" => {
                let (tx, rx) = event_channel(1 << 20);
                let p = r.protocol;
                tx.send(initial_response(p)).await.unwrap();
                tokio::spawn(async move {
                    for n in 0..3 {
                        let payload = format!(r#"{{"Records":[{{"SequenceNumber":"{n}","Data":"aGVsbG8=","PartitionKey":"k","ApproximateArrivalTimestamp":1.5}}],"ContinuationSequenceNumber":"{n}","MillisBehindLatest":0}}"#);
                        if tx.send(event("SubscribeToShardEvent", p.content_type(), payload.into()).unwrap()).await.is_err() { return }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    let _ = tx.send(exception(ErrorKind::ResourceInUse, "taken over", p).unwrap()).await;
                });
                Ok(ApiResponse::Events(rx))
            }
            "PutRecords" => Ok(ApiResponse::Whole(format!(r#"{{"FailedRecordCount":0,"Records":[{{"SequenceNumber":"{}","ShardId":"shardId-000000000000"}}]}}"#, r.body.len()).into())),
            _ => Err(ApiError::resource_not_found("Stream a under account 000000000000 not found.")),
        }
    }
}
#[tokio::main]
async fn main() {
    let server = Server::start(ServerConfig::plain("[::]:4599".parse().unwrap()), A).unwrap();
    println!("{}", server.local_addr());
    tokio::signal::ctrl_c().await.unwrap();
    println!("{:?}", server.drain(Duration::from_secs(3)).await);
}
