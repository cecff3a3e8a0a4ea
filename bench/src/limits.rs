//! What the machine can do without a node: every workload measures it first, so that each figure
//! is also a ratio.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use thalweg_node::io::{Arena, BufferId};

use crate::error::BenchError;
use crate::machine::Machine;
use crate::report::{self, Report};
use crate::settings::Common;

/// Writes or reads side by side.
const DEPTH: u64 = 8;
const BLOCK_BYTES: usize = 1 << 20;
const SMALL_BYTES: usize = 4096;
const FILE_BYTES: u64 = 512 << 20;
/// Writes between two syncs.
const BLOCKS_PER_SYNC: u64 = 8;
/// How long each figure is measured.
const SPAN: Duration = Duration::from_millis(1500);

/// The machine's limits.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Limits {
    /// Direct writes of 1 MiB, always eight in flight, a sync for each eight; bytes/s.
    pub disk_write_bytes_per_s: f64,
    /// Direct reads of 1 MiB, always eight in flight; bytes/s.
    pub disk_read_bytes_per_s: f64,
    /// Direct writes of 4 KiB, each synced; a second.
    pub disk_syncs_per_s: f64,
    /// One connection over loopback, 1 MiB at a time; bytes/s.
    pub loopback_bytes_per_s: f64,
}

/// Measures them, in a file below `dir` that is removed again.
///
/// # Errors
/// [`BenchError::Limits`] when the disk takes no direct I/O or the system refuses.
pub fn measure(dir: &Path) -> Result<Limits, BenchError> {
    let failed = |what| move |source| BenchError::Limits { what, source };
    std::fs::create_dir_all(dir).map_err(failed("the directory"))?;
    let path = dir.join("limits-probe");
    let disk = measure_disk(&path, SPAN);
    let _ = std::fs::remove_file(&path);
    let (write, read, syncs) = disk.map_err(failed("direct I/O on the disk"))?;
    Ok(Limits {
        disk_write_bytes_per_s: write,
        disk_read_bytes_per_s: read,
        disk_syncs_per_s: syncs,
        loopback_bytes_per_s: measure_loopback().map_err(failed("loopback"))?,
    })
}

/// The workload `limits`.
///
/// # Errors
/// As [`measure`].
pub fn run(settings: &Common) -> Result<bool, BenchError> {
    let existed = settings.data_dir.exists();
    let limits = measure(&settings.data_dir)?;
    let machine = Machine::here(&settings.data_dir);
    if !existed {
        let _ = std::fs::remove_dir(&settings.data_dir);
    }
    report::print_limits(&limits);
    let mut report = Report::new("limits", settings, machine, limits);
    report.passed = true;
    report.write_json(settings.json.as_deref())?;
    Ok(true)
}

/// A buffer for direct I/O, in memory of the kind that a node uses: on pages of 4 KiB instead of
/// large ones this disk was read at less than half of its rate. Its bytes are no zeroes, which a
/// disk may treat better than data.
struct Buffer {
    arena: Arena,
    id: BufferId,
}

impl Buffer {
    fn new(bytes: usize) -> std::io::Result<Buffer> {
        let mut arena = Arena::new(bytes)?;
        let id = arena.allocate(bytes).expect("an arena has the room it was made with");
        let words = (1_u64..).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        arena.bytes_mut(id).iter_mut().zip(words.flatten()).for_each(|(byte, from)| *byte = from);
        Ok(Buffer { arena, id })
    }

    fn bytes(&mut self) -> &mut [u8] {
        self.arena.bytes_mut(self.id)
    }
}

fn measure_disk(path: &Path, span: Duration) -> std::io::Result<(f64, f64, f64)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let mut block = Buffer::new(BLOCK_BYTES)?;
    for at in (0..FILE_BYTES).step_by(BLOCK_BYTES) {
        file.write_all_at(block.bytes(), at)?;
    }
    file.sync_all()?;
    let write = at_depth(span, &|block, buffer| {
        file.write_all_at(buffer, block * BLOCK_BYTES as u64 % FILE_BYTES)?;
        if block % BLOCKS_PER_SYNC == BLOCKS_PER_SYNC - 1 { file.sync_data() } else { Ok(()) }
    })?;
    let read = at_depth(span, &|block, buffer| {
        file.read_exact_at(buffer, block * BLOCK_BYTES as u64 % FILE_BYTES)
    })?;
    let mut small = Buffer::new(SMALL_BYTES)?;
    let (started, mut syncs) = (Instant::now(), 0_u64);
    while started.elapsed() < span / 2 {
        file.write_all_at(small.bytes(), syncs * SMALL_BYTES as u64 % FILE_BYTES)?;
        file.sync_data()?;
        syncs += 1;
    }
    Ok((write, read, syncs as f64 / started.elapsed().as_secs_f64()))
}

/// What is done with a block, by its running number.
type BlockOperation<'a> = dyn Fn(u64, &mut [u8]) -> std::io::Result<()> + Sync + 'a;

/// Keeps [`DEPTH`] operations in flight for a span; bytes/s. No thread waits for another: with
/// rounds that end together the disk would run empty at the end of each, and what is called its
/// limit would be one that a node exceeds.
fn at_depth(span: Duration, operation: &BlockOperation<'_>) -> std::io::Result<f64> {
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let started = Instant::now();
    let work = || -> std::io::Result<()> {
        let mut buffer = Buffer::new(BLOCK_BYTES)?;
        while started.elapsed() < span {
            operation(next.fetch_add(1, Ordering::Relaxed), buffer.bytes())?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..DEPTH).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a probe does not panic"))
    })?;
    let bytes = done.load(Ordering::Relaxed) * BLOCK_BYTES as u64;
    Ok(bytes as f64 / started.elapsed().as_secs_f64())
}

fn measure_loopback() -> std::io::Result<f64> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    let started = Instant::now();
    let span = SPAN / 2;
    let sending = std::thread::spawn(move || -> std::io::Result<()> {
        let block = vec![7; BLOCK_BYTES];
        while started.elapsed() < span {
            sender.write_all(&block)?;
        }
        Ok(())
    });
    let (mut block, mut bytes) = (vec![0; BLOCK_BYTES], 0);
    loop {
        match receiver.read(&mut block)? {
            0 => break,
            count => bytes += count,
        }
    }
    let rate = bytes as f64 / started.elapsed().as_secs_f64();
    sending.join().map_err(|_| std::io::Error::other("the sender panicked"))??;
    Ok(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_limits() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let limits = measure(dir.path()).unwrap();
        let figures = [
            limits.disk_write_bytes_per_s,
            limits.disk_read_bytes_per_s,
            limits.disk_syncs_per_s,
            limits.loopback_bytes_per_s,
        ];
        assert!(figures.iter().all(|figure| figure.is_finite() && *figure > 0.0), "{figures:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the probe is removed");
    }
}
