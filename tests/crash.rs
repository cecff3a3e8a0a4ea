//! SIGKILL under load, again and again: every acked record is there, at its offset, once; an
//! idempotent producer that never noticed a thing makes no duplicates.

mod support;

use support::load::{Load, LoadConfig, read_everything};
use support::{NodeProcess, directory, two_free_ports};

const SHARDS: u32 = 6;

/// Crashes in all; more in the long mode.
fn crashes() -> u64 {
    let wanted = std::env::var("THALWEG_CRASHES").ok().and_then(|count| count.parse().ok());
    wanted.unwrap_or(5)
}

#[test]
fn killed_under_load_a_node_loses_nothing_and_repeats_nothing() {
    let data = directory();
    let mut node = NodeProcess::start(data.path(), two_free_ports(), 2);
    node.open_shards(SHARDS, None);
    let load = Load::start(LoadConfig::new(node.address(0), &[]));
    for crash in 0..crashes() {
        // Each crash comes after some progress, at a moment of its own.
        load.wait_for_acks(200 + crash * 37);
        node.restart();
    }
    let told = load.finish();
    assert!(told.refused.is_empty(), "an idempotent producer loses nothing: {:?}", told.refused);
    // Once more, so that nothing is read from what is only in memory.
    node.restart();
    let found = read_everything(node.address(0)).expect("all can be read, without a gap");
    for (place, number) in &told.acked {
        assert_eq!(found.get(place), Some(number), "an acked record is where its ack said");
    }
    assert!(told.acked.len() as u64 > 200 * crashes());
    println!("{} crashes, {} records acked, {} found", crashes(), told.acked.len(), found.len());
}
