//! The way of a PutRecords request through the router, for counts and benchmarks.

use std::time::{Duration, UNIX_EPOCH};

use thalweg_router::control::catalog::Stream;
use thalweg_router::control::record::{
    Encryption, RECORD_VERSION, ShardRecord, StreamMode, StreamName, StreamRecord, StreamStatus,
};
use thalweg_router::kinesis::PutRecordsPath;
use thalweg_router::kinesis::codec;
use thalweg_router::kinesis::credentials::Credentials as KnownKeys;
use thalweg_router::kinesis::sigv4::Authenticator;
use thalweg_wire::hash_range::{HashKey, HashRange};

use crate::kinesis::credentials::Credentials;
use crate::kinesis::encode::{Encoding, PutRecordsBody};
use crate::kinesis::sign::Signer;

/// Records of the request: as many as one may have.
const RECORDS: usize = 500;
/// Bytes of data of each.
const RECORD_BYTES: usize = 1024;
/// Shards that they go to.
const SHARDS: u32 = 4;
/// When it is signed and comes: a day, so that each count is of the same bytes.
const AT_S: u64 = 1_795_000_000;
const ACCOUNT: &str = "123456789012";
const REGION: &str = "us-east-1";
const STREAM: &str = "hotpath";
const HOST: &str = "127.0.0.1:4567";
const TARGET: &str = "Kinesis_20131202.PutRecords";

/// A PutRecords request of 500 records of 1 KiB for four shards: authenticated, read, dealt out,
/// laid out as batches, answered.
pub(crate) fn put_records(encoding: Encoding) -> Box<dyn FnMut() -> u64> {
    let mut body = Vec::new();
    let mut records = PutRecordsBody::new(encoding, &mut body, STREAM, RECORDS);
    for number in 0..RECORDS {
        records.push(&format!("key-{number:07}"), &[number as u8; RECORD_BYTES]);
    }
    records.finish();
    let keys = "[[key]]\naccess_key_id = \"THALWEGHOTPATH000001\"\n\
                secret_access_key = \"a-secret-of-no-worth\"\naccount_id = \"123456789012\"\n";
    let credentials = Credentials::of_document(keys).expect("valid credentials");
    let content_type = encoding.content_type();
    let before = [("content-type", content_type), ("host", HOST)];
    let mut signer = Signer::new(credentials, REGION);
    let signed = signer.sign(&before, &[("x-amz-target", TARGET)], &body, AT_S);
    let request = http::Request::post("/")
        .header("content-type", content_type)
        .header("host", HOST)
        .header("x-amz-target", TARGET)
        .header("x-amz-date", signed.date)
        .header("authorization", signed.authorization);
    let head = request.body(()).expect("a request").into_parts().0;
    let known = Authenticator::new(KnownKeys::from_document(keys).expect("valid credentials"));
    let (at, encoding) = (UNIX_EPOCH + Duration::from_secs(AT_S), router_encoding(encoding));
    let path = PutRecordsPath::new(known, (head, body), encoding, at, stream());
    Box::new(move || path.take().expect("a valid request") as u64)
}

fn router_encoding(encoding: Encoding) -> codec::Encoding {
    match encoding {
        Encoding::Json => codec::Encoding::Json,
        Encoding::Cbor => codec::Encoding::Cbor,
    }
}

/// A stream of open shards with equal ranges.
fn stream() -> Stream {
    let name = StreamName {
        account_id: ACCOUNT.to_owned(),
        region: REGION.to_owned(),
        name: STREAM.to_owned(),
    };
    let record = StreamRecord {
        version: RECORD_VERSION,
        id: 1,
        created_ms: AT_S * 1000,
        status: StreamStatus::Active,
        intent: None,
        next_shard: SHARDS,
        mode: StreamMode::Provisioned,
        retention_hours: 24,
        encryption: Encryption::None,
        metrics: Default::default(),
        tags: Default::default(),
        policy: None,
        max_record_kib: 1024,
        warm_mibps: None,
        distributes: false,
        resized_ms: Vec::new(),
        mode_changed_ms: Vec::new(),
        key_changed_ms: Vec::new(),
        key_dropped_ms: Vec::new(),
    };
    let part = u128::MAX / u128::from(SHARDS) + 1;
    let shard = |index: u32| {
        let start = HashKey(u128::from(index) * part);
        let range = HashRange { start, end: HashKey(start.0 + (part - 1)) };
        let (parents, created_s) = (Vec::new(), AT_S);
        let shard =
            ShardRecord { version: RECORD_VERSION, range, created_s, parents, end: None, node: 0 };
        (index, shard)
    };
    Stream::of_records(name, record, (0..SHARDS).map(shard))
}
