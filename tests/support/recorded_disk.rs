//! A disk that records every write and flush in their order, and what it could hold had the power
//! been cut at one of them.
//!
//! The record has the format of Linux's dm-log-writes: a superblock, then an entry a write or
//! flush, its data behind it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use thalweg_node::io::sim::SimRandom;

use super::loop_disk::{Daemon, FileDisk, FuseMount, LoopDevice, Mount, make_file_system, scratch};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const SECTOR_BYTES: u64 = 512;
const FLUSH: u64 = 1;
const FORCED: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
/// What a file system relies on being written whole.
const BLOCK_BYTES: u64 = 4096;

/// Tools of a [`RecordedDisk`].
pub(crate) const RECORD_TOOLS: [(&str, &str); 1] = [("qemu-storage-daemon", "qemu-utils")];

/// See the module. Fields are dropped in order: what stands on another stands before it.
pub(crate) struct RecordedDisk {
    pub mount: Mount,
    device: LoopDevice,
    fuse: FuseMount,
    server: Daemon,
    dir: tempfile::TempDir,
}

impl RecordedDisk {
    /// An empty disk of so many bytes.
    pub(crate) fn new(bytes: u64) -> RecordedDisk {
        // Itself, what it was before, its record, and two of the images made of it.
        let dir = scratch(6 * bytes);
        let file = |name: &str| dir.path().join(name);
        let made = File::create(file("disk")).and_then(|disk| disk.set_len(bytes));
        made.expect("a file for the disk");
        make_file_system(&file("disk"));
        copy_sparse(&file("disk"), &file("before"));
        for name in ["record", "export"] {
            File::create(file(name)).expect("an empty file");
        }
        let node =
            |name: &str| format!("driver=file,node-name={name},filename={}", file(name).display());
        let mut server = Command::new("qemu-storage-daemon");
        server.args(["--blockdev", &node("disk"), "--blockdev", &node("record"), "--blockdev"]);
        server.arg("driver=blklogwrites,node-name=recorded,file=disk,log=record");
        server.arg("--export").arg(format!(
            "type=fuse,id=export,node-name=recorded,mountpoint={},writable=on",
            file("export").display()
        ));
        let fuse = FuseMount(file("export"));
        let is_served = || file("export").metadata().is_ok_and(|export| export.len() == bytes);
        let server = Daemon::start(&mut server, is_served);
        let device = LoopDevice::attach(&file("export"), false);
        RecordedDisk { mount: Mount::new(device.path()), device, fuse, server, dir }
    }

    /// The clock of this disk: how long its record is. What an ack tells of was recorded before.
    pub(crate) fn clock(&self) -> impl Fn() -> u64 + Send + 'static {
        let record = File::open(self.dir.path().join("record")).expect("it is there");
        move || record.metadata().expect("it is open").len()
    }

    /// Takes the disk down and reads what was recorded.
    pub(crate) fn finish(self) -> Recording {
        let RecordedDisk { mount, device, fuse, server, dir } = self;
        drop((mount, device, fuse, server));
        Recording::open(dir)
    }
}

/// A write or flush.
struct Entry {
    sector: u64,
    sectors: u64,
    flags: u64,
    data_at: u64,
    /// Where the next one begins in the record.
    end_at: u64,
}

/// What a disk was asked to do.
pub(crate) struct Recording {
    dir: tempfile::TempDir,
    record: File,
    entries: Vec<Entry>,
    /// Entries that are in the image that is carried along, from the first on.
    applied: usize,
}

/// An image of the disk after a power cut.
pub(crate) struct CutImage {
    pub file: PathBuf,
    /// Entries that were written back though no flush had asked for it, and all there were.
    pub kept: (usize, usize),
}

impl Recording {
    fn open(dir: tempfile::TempDir) -> Recording {
        let record = File::open(dir.path().join("record")).expect("it is there");
        let words = |at: u64| -> [u64; 4] {
            let mut bytes = [0; 32];
            record.read_exact_at(&mut bytes, at).expect("the record is whole");
            let (words, _) = bytes.as_chunks::<8>();
            std::array::from_fn(|place| u64::from_le_bytes(words[place]))
        };
        let [magic, version, count, sector_bytes] = words(0);
        assert_eq!((magic, version), (MAGIC, 1), "a record of writes");
        assert_eq!(sector_bytes & 0xffff_ffff, SECTOR_BYTES);
        let mut entries = Vec::new();
        let mut at = SECTOR_BYTES;
        for _ in 0..count {
            let [sector, sectors, flags, data_bytes] = words(at);
            assert_eq!(flags & !(FLUSH | FORCED | DISCARD | MARK), 0, "flags that are known");
            let data_at = at + SECTOR_BYTES;
            let stored = match flags {
                flags if flags & DISCARD != 0 => 0,
                flags if flags & MARK != 0 => data_bytes.next_multiple_of(SECTOR_BYTES),
                _ => sectors * SECTOR_BYTES,
            };
            at = data_at + stored;
            entries.push(Entry { sector, sectors, flags, data_at, end_at: at });
        }
        copy_sparse(&dir.path().join("before"), &dir.path().join("carried"));
        Recording { dir, record, entries, applied: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many entries had been recorded when its clock said `mark`; the first after which
    /// that is so.
    pub(crate) fn entries_at(&self, mark: u64) -> usize {
        let before = self.entries.partition_point(|entry| entry.end_at < mark);
        (before + 1).min(self.entries.len())
    }

    /// What the clock says after `count` entries.
    pub(crate) fn mark_after(&self, count: usize) -> u64 {
        self.entries[..count].last().map_or(SECTOR_BYTES, |entry| entry.end_at)
    }

    /// How many of the first `count` entries a flush has made durable.
    pub(crate) fn flushed_of(&self, count: usize) -> usize {
        let is_flush = |entry: &Entry| entry.flags & FLUSH != 0;
        self.entries[..count].iter().rposition(is_flush).map_or(0, |flush| flush + 1)
    }

    /// The disk after a power cut behind `count` entries: what was written before the last flush
    /// among them, and of what was written since then as much as chance has it. Cuts are made in
    /// rising order.
    pub(crate) fn cut(&mut self, count: usize, random: &mut SimRandom) -> CutImage {
        let flushed = self.flushed_of(count);
        assert!(flushed >= self.applied, "cuts are made in rising order");
        let carried = self.dir.path().join("carried");
        let image = File::options().write(true).open(&carried).expect("it is there");
        for entry in &self.entries[self.applied..flushed] {
            self.apply(&image, entry, 0..entry.sectors);
        }
        self.applied = flushed;
        let file = self.dir.path().join("cut");
        copy_sparse(&carried, &file);
        let image = File::options().write(true).open(&file).expect("just made");
        // Nothing, everything, or any part of what was under way.
        let keep_percent = [0, 30, 70, 100][random.below(4) as usize];
        let under_way = &self.entries[flushed..count];
        let mut kept = 0;
        for entry in under_way {
            let forced = entry.flags & FORCED != 0;
            if forced || random.below(100) < keep_percent {
                self.apply(&image, entry, 0..entry.sectors);
                kept += 1;
            } else if random.below(4) == 0 {
                self.apply(&image, entry, self.torn(entry, random));
            }
        }
        CutImage { file, kept: (kept, under_way.len()) }
    }

    /// Sectors of a write that reached the disk when the power failed within it. The node's
    /// own writes may be torn anywhere, the file system's between its blocks.
    fn torn(&self, entry: &Entry, random: &mut SimRandom) -> std::ops::Range<u64> {
        let mut start = [0; 8];
        let is_ours = entry.sectors > 0
            && self.record.read_exact_at(&mut start, entry.data_at).is_ok()
            && (start.starts_with(b"THALWEG") || start.starts_with(b"TWLF"));
        let step = if is_ours { 1 } else { BLOCK_BYTES / SECTOR_BYTES };
        let mut place = || random.below(entry.sectors / step + 1) * step;
        let (one, other) = (place(), place());
        one.min(other)..one.max(other)
    }

    fn apply(&self, image: &File, entry: &Entry, sectors: std::ops::Range<u64>) {
        if entry.flags & MARK != 0 || sectors.is_empty() {
            return;
        }
        let mut bytes = vec![0; ((sectors.end - sectors.start) * SECTOR_BYTES) as usize];
        if entry.flags & DISCARD == 0 {
            let at = entry.data_at + sectors.start * SECTOR_BYTES;
            self.record.read_exact_at(&mut bytes, at).expect("the record is whole");
        }
        let place = (entry.sector + sectors.start) * SECTOR_BYTES;
        image.write_all_at(&bytes, place).expect("the image can be written");
    }
}

impl CutImage {
    /// Repairs the file system as a start of the system would, by its journal or by its checker.
    pub(crate) fn mount(&self, with_checker: bool) -> FileDisk {
        if with_checker {
            super::loop_disk::check_file_system(&self.file);
        }
        FileDisk::of(&self.file)
    }
}

fn copy_sparse(from: &Path, to: &Path) {
    super::loop_disk::succeed(
        "cp",
        super::loop_disk::words!["--sparse=always", "--reflink=auto", from, to],
    );
}
