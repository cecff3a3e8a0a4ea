//! Disks that fail, slow down, lose power, die or are full, below a node as its users run it:
//! what was acked is there afterwards, at its offset, once, and nothing was acked that is not.
//!
//! `THALWEG_FAULTS=n` makes n power cuts, and a fifth as many of each of the other faults.
//! `THALWEG_FAULTS_SEED` repeats the choices of a run.

mod support;

use std::path::PathBuf;
use std::time::Duration;

use support::load::{Load, LoadConfig, Records, Told, read_everything, refusal_of_write};
use support::loop_disk::{FileDisk, LOOP_TOOLS, UNSOUND_TOOLS, UnsoundDisk, Unsoundness, require};
use support::recorded_disk::{RECORD_TOOLS, RecordedDisk, Recording};
use support::{
    NodeProcess, NodeSizes, PATIENCE, SMALL, STREAM, directory, two_free_ports, wait_for,
};
use thalweg_client::Admin;
use thalweg_node::io::sim::SimRandom;
use thalweg_wire::control::TrimShard;
use thalweg_wire::error::ErrorCode;
use thalweg_wire::ids::{Offset, ShardId};

const MIB: u64 = 1 << 20;

/// Faults to make: of power cuts, and of each other kind.
fn faults() -> (u64, u64) {
    let wanted = std::env::var("THALWEG_FAULTS").ok().and_then(|count| count.parse::<u64>().ok());
    wanted.map_or((4, 1), |count| (count, count.div_ceil(5)))
}

fn seed() -> u64 {
    let wanted = std::env::var("THALWEG_FAULTS_SEED").ok().and_then(|seed| seed.parse().ok());
    wanted.unwrap_or_else(|| u64::from(std::process::id()))
}

/// What came of the faults of a kind.
#[derive(Default)]
struct Tally {
    faults: u64,
    checked: u64,
    lost: Vec<String>,
}

impl Tally {
    /// Holds what was acked against what is there.
    fn compare<'a>(
        &mut self,
        acked: impl IntoIterator<Item = (&'a (u32, u64), &'a u64)>,
        found: &Records,
        when: &str,
    ) {
        for (place, number) in acked {
            self.checked += 1;
            if found.get(place) != Some(number) {
                let (shard, offset) = place;
                let there = found.get(place);
                self.lost.push(format!("{when}: shard {shard}, offset {offset}: {there:?}"));
            }
        }
    }

    /// A record that was acked and is not there was lost, or its ack was false: seen from
    /// outside it is the same.
    fn conclude(&self, what: &str, seed: u64) {
        println!(
            "{what}: {} tried, {} acked records checked, {} lost or acked falsely (seed {seed})",
            self.faults,
            self.checked,
            self.lost.len()
        );
        let first = &self.lost[..self.lost.len().min(5)];
        assert!(self.lost.is_empty(), "{what}, seed {seed}: {} lost: {first:?}", self.lost.len());
        assert!(self.checked > 0, "nothing was checked");
    }
}

/// Everything a node has, which must be readable without a gap.
#[track_caller]
fn read_all(node: &NodeProcess) -> Records {
    read_everything(node.address(0)).expect("all can be read, without a gap")
}

#[track_caller]
fn nothing_was_refused(told: &Told) {
    assert!(told.refused.is_empty(), "an idempotent producer goes on: {:?}", told.refused);
}

/// A load of some MB a second.
fn moderate(node: &NodeProcess, shards: &[u32]) -> LoadConfig {
    LoadConfig { bytes_per_s: 8 * MIB, ..LoadConfig::new(node.address(0), shards) }
}

#[test]
fn a_disk_whose_writes_fail_stops_its_log_and_no_other() {
    require(&LOOP_TOOLS);
    require(&UNSOUND_TOOLS);
    let mut tally = Tally::default();
    let mut random = SimRandom::new(seed());
    for _ in 0..faults().1 {
        // At times not every write fails.
        let failing_percent = if random.once_in(3) { 30 } else { 100 };
        failing_writes(Duration::from_millis(100 + random.below(900)), failing_percent, &mut tally);
        tally.faults += 1;
    }
    tally.conclude("failed writes", seed());
}

fn failing_writes(sound_for: Duration, failing_percent: u32, tally: &mut Tally) {
    let unsoundness = Unsoundness { write_delay: Duration::ZERO, failing_percent };
    let mut unsound = UnsoundDisk::new(320 * MIB, unsoundness);
    let sound = directory();
    let dirs = [unsound.mount.path().join("data"), sound.path().join("data")];
    let mut node = NodeProcess::start_on(&dirs, two_free_ports(), 1, SMALL);
    node.open_shards_on_disks(4);
    let on_unsound = Load::start(moderate(&node, &[0, 2]));
    let on_sound = Load::start(moderate(&node, &[1, 3]));
    on_unsound.wait_for_acks(100);
    std::thread::sleep(sound_for);
    unsound.break_writes();
    let log_failed = || refusal_of_write(node.address(0), 0) == Some(ErrorCode::LogFailed);
    wait_for("the end of the log", log_failed);
    let acked_at_end = acked_when_settled(&on_unsound);
    on_sound.wait_for_acks(200);
    assert!(read_all(&node).len() as u64 >= acked_at_end, "reads go on");
    unsound.heal();
    assert!(log_failed(), "a log that stopped does not go on because its disk does");
    assert_eq!(on_unsound.acked(), acked_at_end, "nothing is acked by a log that stopped");
    on_sound.wait_for_acks(200);
    node.kill();
    unsound.mount.repair();
    node.restart();
    on_unsound.wait_for_acks(200);
    on_sound.wait_for_acks(200);
    let (unsound_told, sound_told) = (on_unsound.finish(), on_sound.finish());
    nothing_was_refused(&unsound_told);
    nothing_was_refused(&sound_told);
    node.restart();
    let found = read_all(&node);
    tally.compare(&unsound_told.acked, &found, "failed writes");
    tally.compare(&sound_told.acked, &found, "the other disk");
    drop(node);
}

/// What a load was told when the acks that had been sent to it have come.
fn acked_when_settled(load: &Load) -> u64 {
    let mut acked = load.acked();
    wait_for("the end of the acks", || {
        std::thread::sleep(Duration::from_millis(500));
        std::mem::replace(&mut acked, load.acked()) == load.acked()
    });
    acked
}

/// Batches of 140 kB to 1 MB, as many as the node takes.
fn flood(node: &NodeProcess, shards: &[u32]) -> LoadConfig {
    let mut load = LoadConfig::new(node.address(0), shards);
    load.batches_under_way = 1000;
    load.bytes_per_s = 80 * MIB;
    load.data_bytes = |_| 140_000;
    load.producer.window_bytes = 256 << 20;
    load
}

/// A core's memory is full of what waits for one of its disks when that fails.
#[test]
fn a_slow_disk_bounds_memory_and_loses_nothing_when_it_fails() {
    require(&LOOP_TOOLS);
    require(&UNSOUND_TOOLS);
    let mut tally = Tally::default();
    for _ in 0..faults().1 {
        slow_then_failing_writes(&mut tally);
        tally.faults += 1;
    }
    tally.conclude("slow, then failed writes", seed());
}

fn slow_then_failing_writes(tally: &mut Tally) {
    let write_delay = Duration::from_millis(50);
    let unsoundness = Unsoundness { write_delay, failing_percent: 100 };
    let mut slow = UnsoundDisk::new(1 << 30, unsoundness);
    let fast = directory();
    let dirs = [slow.mount.path().join("data"), fast.path().join("data")];
    // Segments that hold more than the memory does.
    let sizes = NodeSizes { memory_bytes: 64 * MIB, segment_bytes: 32 * MIB };
    let mut node = NodeProcess::start_on(&dirs, two_free_ports(), 1, sizes);
    // Many shards: as many windows of batches under way.
    node.open_shards_on_disks(64);
    let slow_shards: Vec<u32> = (0..64).step_by(2).collect();
    let on_slow = Load::start(flood(&node, &slow_shards));
    on_slow.wait_for_acks(60);
    // Until the node is full of what waits.
    std::thread::sleep(Duration::from_millis(700));
    slow.break_writes();
    wait_for("the end of the log", || {
        refusal_of_write(node.address(0), 0) == Some(ErrorCode::LogFailed)
    });
    // Large batches, which need memory of their own.
    let on_fast = Load::start(LoadConfig { bytes_per_s: 20 * MIB, ..flood(&node, &[1, 3]) });
    on_fast.wait_for_acks(50);
    let fast_told = on_fast.finish();
    // What a process has beside the budget is its program and stacks.
    let resident = node.resident_bytes_max();
    assert!(resident < sizes.memory_bytes + 64 * MIB, "{resident} bytes resident");
    slow.heal();
    node.kill();
    slow.mount.repair();
    node.restart();
    on_slow.wait_for_acks(60);
    let slow_told = on_slow.finish();
    nothing_was_refused(&slow_told);
    nothing_was_refused(&fast_told);
    node.restart();
    let found = read_all(&node);
    tally.compare(&slow_told.acked, &found, "slow writes");
    tally.compare(&fast_told.acked, &found, "the other disk");
    drop(node);
}

#[test]
fn a_power_cut_loses_nothing_that_was_acked() {
    require(&LOOP_TOOLS);
    require(&RECORD_TOOLS);
    let mut tally = Tally::default();
    let mut random = SimRandom::new(seed());
    let mut left = faults().0;
    while left > 0 {
        let cuts = left.min(25);
        power_cuts(cuts, &mut random, &mut tally);
        left -= cuts;
    }
    tally.conclude("power cuts", seed());
}

/// Records a load, with trims, over some segments; then cuts the power at `cuts` places of it.
fn power_cuts(cuts: u64, random: &mut SimRandom, tally: &mut Tally) {
    let disk = RecordedDisk::new(320 * MIB);
    let mut node = NodeProcess::start(&disk.mount.path().join("data"), two_free_ports(), 2);
    node.open_shards(4, None);
    let config = LoadConfig { batches_under_way: 8, ..moderate(&node, &[]) };
    let load = Load::start_with_clock(config, disk.clock());
    let (mut kept, mut restarts) = (Vec::new(), 0);
    while load.acked_bytes() < 40 * MIB {
        load.wait_for_acks(400);
        kept = trim(&node, &[0], |committed| committed / 2);
        // Each takes a segment of each log.
        if restarts < 2 && random.once_in(8) {
            node.restart();
            restarts += 1;
        }
    }
    let told = load.finish();
    nothing_was_refused(&told);
    node.kill();
    drop(node);
    let mut recording = disk.finish();
    for count in places_to_cut(cuts, &recording, &told, random) {
        let image = recording.cut(count, random);
        let when = format!("cut behind {count} of {}, kept {:?}", recording.len(), image.kept);
        println!("{when} (seed {})", seed());
        let disk = image.mount(random.once_in(2));
        let mark = recording.mark_after(count);
        let node = NodeProcess::start(&disk.mount.path().join("data"), two_free_ports(), 2);
        let found = read_all(&node);
        let before_cut = told.batches.iter().filter(|batch| batch.mark <= mark).flat_map(|batch| {
            let offsets = batch.first_offset..batch.first_offset + batch.records;
            offsets.map(|offset| (batch.shard, offset))
        });
        // What was to be trimmed at any time may be gone.
        let must_be_there = before_cut.filter(|(shard, offset)| {
            kept.iter().all(|(trimmed, first)| shard != trimmed || offset >= first)
        });
        let acked: Records = must_be_there.map(|place| (place, told.acked[&place])).collect();
        tally.compare(&acked, &found, &when);
        tally.faults += 1;
        drop(node);
    }
}

/// A third behind a flush, a third just where the ack of a batch had come, a third anywhere.
fn places_to_cut(
    cuts: u64,
    recording: &Recording,
    told: &Told,
    random: &mut SimRandom,
) -> Vec<usize> {
    let mut places = Vec::new();
    for cut in 0..cuts {
        let anywhere = random.below(recording.len() as u64 + 1) as usize;
        let batch = told.batches[random.below(told.batches.len() as u64) as usize];
        places.push(match cut % 3 {
            0 => recording.entries_at(batch.mark),
            1 => anywhere,
            _ => recording.flushed_of(anywhere),
        });
    }
    places.sort_unstable();
    places
}

/// Trims shards up to where `first_kept` says, given where they end; answers what it kept.
fn trim(node: &NodeProcess, shards: &[u32], first_kept: impl Fn(u64) -> u64) -> Vec<(u32, u64)> {
    let mut kept = Vec::new();
    let ports = Admin::connect(node.address(0), PATIENCE).and_then(|mut admin| admin.hello());
    for core in 0..ports.expect("it serves").ports.len() as u16 {
        let mut admin = Admin::connect(node.address(core), PATIENCE).expect("it serves");
        for shard in admin.describe(STREAM).expect("it answers") {
            let id: ShardId = shard.extent.shard;
            if shards.contains(&id.index) {
                let first = first_kept(shard.committed.0);
                let command = TrimShard { shard: id, first_kept: Offset(first) };
                admin.trim_shard(&command).expect("a trim is durable");
                kept.push((id.index, first));
            }
        }
    }
    kept
}

#[test]
fn a_file_system_that_dies_takes_no_acked_record_with_it() {
    require(&LOOP_TOOLS);
    require(&[("xfs_io", "xfsprogs")]);
    let mut tally = Tally::default();
    let mut random = SimRandom::new(seed());
    for _ in 0..faults().1 {
        let mut disk = FileDisk::new(320 * MIB);
        let data = disk.mount.path().join("data");
        let mut node = NodeProcess::start(&data, two_free_ports(), 2);
        node.open_shards(4, None);
        let load = Load::start(moderate(&node, &[]));
        load.wait_for_acks(100);
        std::thread::sleep(Duration::from_millis(random.below(1000)));
        disk.shut_down_file_system();
        for shard in 0..4 {
            wait_for("the end of the log", || {
                refusal_of_write(node.address(0), shard) == Some(ErrorCode::LogFailed)
            });
        }
        node.kill();
        disk.mount.repair();
        node.restart();
        load.wait_for_acks(200);
        let told = load.finish();
        nothing_was_refused(&told);
        node.restart();
        tally.compare(&told.acked, &read_all(&node), "a file system that died");
        tally.faults += 1;
        drop(node);
    }
    tally.conclude("file systems that died", seed());
}

#[test]
fn a_full_disk_takes_no_writes_and_serves_on() {
    require(&LOOP_TOOLS);
    let mut tally = Tally::default();
    let mut random = SimRandom::new(seed());
    for _ in 0..faults().1 {
        full_disk(&mut random, &mut tally);
        tally.faults += 1;
    }
    tally.conclude("full disks", seed());
}

/// Writes until there is no space; answers what was acked.
fn fill(node: &NodeProcess) -> Told {
    let mut config = LoadConfig::new(node.address(0), &[]);
    config.data_bytes = |round| if round.is_multiple_of(3) { 20_000 } else { 2_000 };
    config.batches_under_way = 8;
    config.producer.retry_for = Duration::from_millis(300);
    let load = Load::start(config);
    wait_for("the end of the space", || load.refused(ErrorCode::NoSpace) > 0);
    let told = load.finish();
    // While the next segment is filled with zeros a node is busy.
    let passes = [ErrorCode::NoSpace, ErrorCode::Overloaded].map(|code| code as u16);
    assert!(told.refused.keys().all(|code| passes.contains(code)), "{:?}", told.refused);
    told
}

fn full_disk(random: &mut SimRandom, tally: &mut Tally) {
    // Free space does not end with a segment.
    let disk = FileDisk::new((176 + random.below(32)) * MIB);
    let other_file: PathBuf = disk.mount.path().join("other");
    std::fs::write(&other_file, vec![1; ((20 + random.below(24)) * MIB) as usize])
        .expect("the disk is empty");
    let data = disk.mount.path().join("data");
    let mut node = NodeProcess::start(&data, two_free_ports(), 1);
    node.open_shards(4, None);
    let mut acked = fill(&node).acked;
    tally.compare(&acked, &read_all(&node), "reads on a full disk");

    node.restart();
    tally.compare(&acked, &read_all(&node), "a start on a full disk");
    acked.extend(fill(&node).acked);

    let kept = trim(&node, &[0, 1, 2, 3], |committed| committed / 2);
    let is_kept = |shard: u32, offset: u64| {
        kept.iter().all(|(trimmed, first)| shard != *trimmed || offset >= *first)
    };
    acked.retain(|(shard, offset), _| is_kept(*shard, *offset));
    // Space that was given back is written to without a restart.
    acked.extend(fill_some(&node, "space that trims gave back").acked);
    tally.compare(&acked, &read_all(&node), "trims on a full disk");

    // Each start goes on in a new segment, until there is none.
    fill(&node);
    node.restart();
    fill(&node);
    node.restart();
    assert_eq!(refusal_of_write(node.address(0), 3), Some(ErrorCode::NoSpace));
    tally.compare(&acked, &read_all(&node), "a start without a free segment");

    // Space that others give back is found, too.
    std::fs::remove_file(other_file).expect("it is there");
    acked.extend(fill_some(&node, "space that others gave back").acked);
    node.restart();
    tally.compare(&acked, &read_all(&node), "a disk that was full");
    drop(node);
}

/// Writes until some of it was taken.
fn fill_some(node: &NodeProcess, what: &str) -> Told {
    let load = Load::start(moderate(node, &[]));
    wait_for(what, || load.acked() > 200);
    let told = load.finish();
    nothing_was_refused(&told);
    told
}
