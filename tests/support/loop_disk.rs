//! Disks that fail when told to, with a file system on each. Faults are made below the file
//! system: what is made at the system calls is not seen by a ring.
//!
//! Root on Linux, and the tools that [`require`] names. Everything is taken down in the reverse
//! order when a disk is dropped, also by a test that fails.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::directory;

/// How long the system may take to let go of something.
const RELEASE_PATIENCE: Duration = Duration::from_secs(20);
/// Choosing a free loop device and taking it are two steps: one at a time.
static ATTACHING: Mutex<()> = Mutex::new(());

/// Fails unless this is root and the tools are there.
#[track_caller]
pub(crate) fn require(tools: &[(&str, &str)]) {
    assert!(
        rustix::process::geteuid().is_root(),
        "tests of disk faults mount file systems: run them as root"
    );
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |tool: &str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    let missing: Vec<String> = tools
        .iter()
        .filter(|(tool, _)| !is_there(tool))
        .map(|(tool, package)| format!("{tool} (Debian package {package})"))
        .collect();
    assert!(missing.is_empty(), "missing: {}; tests/run installs them", missing.join(", "));
}

/// Tools of every disk here.
pub(crate) const LOOP_TOOLS: [(&str, &str); 6] = [
    ("losetup", "mount"),
    ("mount", "mount"),
    ("umount", "mount"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("fusermount3", "fuse3"),
];

/// Runs a command to its end, whatever that is.
fn output(program: &str, arguments: &[&OsStr]) -> Output {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{program} cannot be run: {error}"))
}

/// Runs a command that has to succeed; answers what it wrote.
#[track_caller]
pub(crate) fn succeed(program: &str, arguments: &[&OsStr]) -> String {
    let output = output(program, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {} {said}", output.status);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

macro_rules! words {
    ($($word:expr),* $(,)?) => { &[$(std::ffi::OsStr::new($word)),*] };
}
pub(crate) use words;

/// A directory in memory when there is room for so many bytes, else on a disk.
pub(crate) fn scratch(bytes: u64) -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let free = rustix::fs::statvfs(memory).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    if free < bytes {
        return directory();
    }
    tempfile::tempdir_in(memory).unwrap_or_else(|_| directory())
}

/// Asks again and again until it holds or took too long; answers whether it does.
pub(crate) fn holds_soon(mut holds: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !holds() {
        if started.elapsed() > RELEASE_PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// A process that is asked to end, and made to, when it is dropped.
pub(crate) struct Daemon(Child);

impl Daemon {
    /// Starts it and waits until `is_ready`.
    #[track_caller]
    pub(crate) fn start(command: &mut Command, is_ready: impl FnMut() -> bool) -> Daemon {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let daemon = Daemon(child.spawn().expect("the tool was found"));
        assert!(holds_soon(is_ready), "{command:?} does not serve");
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let id = self.0.id().to_string();
        output("kill", words!["-TERM", &id]);
        if !holds_soon(|| !matches!(self.0.try_wait(), Ok(None))) {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

/// Whatever a FUSE server left mounted, taken away when it is dropped.
pub(crate) struct FuseMount(pub(crate) PathBuf);

impl Drop for FuseMount {
    fn drop(&mut self) {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let place = self.0.to_string_lossy().into_owned();
        if mounts.lines().any(|line| line.split(' ').nth(1) == Some(&place)) {
            output("umount", words!["--lazy", &self.0]);
        }
    }
}

/// A loop device.
pub(crate) struct LoopDevice(PathBuf);

impl LoopDevice {
    /// Over a file, with blocks of 4,096 bytes.
    pub(crate) fn attach(file: &Path, direct_io: bool) -> LoopDevice {
        let _one_at_a_time = ATTACHING.lock().unwrap_or_else(|broken| broken.into_inner());
        let direct_io = if direct_io { "--direct-io=on" } else { "--direct-io=off" };
        let device = succeed(
            "losetup",
            words!["--find", "--show", "--sector-size", "4096", direct_io, file],
        );
        LoopDevice(device.into())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // What looks at new devices may have it open for a moment.
        let detach = || output("losetup", words!["--detach", &self.0]).status.success();
        if !holds_soon(detach) {
            eprintln!("{} stays attached", self.0.display());
        }
        // It is detached when the last one has closed it.
        let name = self.0.file_name().expect("a device has a name").to_owned();
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        holds_soon(|| !backing.exists());
    }
}

/// A mounted ext4.
pub(crate) struct Mount {
    dir: tempfile::TempDir,
    device: PathBuf,
    mounted: bool,
}

impl Mount {
    pub(crate) fn new(device: &Path) -> Mount {
        let mut mount = Mount { dir: directory(), device: device.to_path_buf(), mounted: false };
        mount.mount();
        mount
    }

    fn mount(&mut self) {
        succeed("mount", words!["--types", "ext4", &self.device, self.dir.path()]);
        self.mounted = true;
    }

    fn unmount(&mut self) -> bool {
        let unmount = || output("umount", words![self.dir.path()]).status.success();
        if std::mem::take(&mut self.mounted) && !holds_soon(unmount) {
            output("umount", words!["--lazy", self.dir.path()]);
            return false;
        }
        true
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Unmounts, repairs, mounts again: what an operator does when a disk is well again.
    pub(crate) fn repair(&mut self) {
        assert!(self.unmount(), "somebody has files open on the disk");
        check_file_system(&self.device);
        self.mount();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// Makes a file system in a file or on a device.
pub(crate) fn make_file_system(place: &Path) {
    succeed("mkfs.ext4", words!["-q", "-F", "-b", "4096", "-E", "nodiscard", place]);
}

/// Repairs a file system that is not mounted.
pub(crate) fn check_file_system(place: &Path) {
    let checked = output("e2fsck", words!["-f", "-y", place]);
    // 0: clean, 1: errors were corrected.
    let well = matches!(checked.status.code(), Some(0 | 1));
    assert!(well, "{} {}", checked.status, String::from_utf8_lossy(&checked.stdout));
}

/// A disk that is a file. Fields are dropped in order: what stands on another stands before it.
pub(crate) struct FileDisk {
    pub mount: Mount,
    _device: LoopDevice,
    _dir: Option<tempfile::TempDir>,
}

impl FileDisk {
    /// An empty one of so many bytes.
    pub(crate) fn new(bytes: u64) -> FileDisk {
        let dir = scratch(2 * bytes);
        let file = dir.path().join("disk");
        let made = std::fs::File::create(&file).and_then(|file| file.set_len(bytes));
        made.expect("a file for the disk");
        make_file_system(&file);
        let disk = FileDisk::of(&file);
        FileDisk { _dir: Some(dir), ..disk }
    }

    /// Over a file that has a file system.
    pub(crate) fn of(file: &Path) -> FileDisk {
        let device = LoopDevice::attach(file, false);
        FileDisk { mount: Mount::new(device.path()), _device: device, _dir: None }
    }

    /// The file system dies under its users, as after an error of its own.
    pub(crate) fn shut_down_file_system(&self) {
        succeed("xfs_io", words!["-x", "-c", "shutdown -f", self.mount.path()]);
    }
}

/// How an [`UnsoundDisk`] is unsound.
#[derive(Clone, Copy)]
pub(crate) struct Unsoundness {
    /// Each write takes so much longer, from the start on.
    pub write_delay: Duration,
    /// How many of a hundred writes fail once [`UnsoundDisk::break_writes`] was called.
    pub failing_percent: u32,
}

/// A disk in memory whose writes are slow, or fail when told to.
pub(crate) struct UnsoundDisk {
    pub mount: Mount,
    _device: LoopDevice,
    _fuse: FuseMount,
    _client: Daemon,
    _server: Daemon,
    dir: tempfile::TempDir,
}

/// Tools of an [`UnsoundDisk`].
pub(crate) const UNSOUND_TOOLS: [(&str, &str); 2] =
    [("nbdkit", "nbdkit"), ("nbdfuse", "libnbd-bin")];

impl UnsoundDisk {
    pub(crate) fn new(bytes: u64, unsoundness: Unsoundness) -> UnsoundDisk {
        let dir = directory();
        let (socket, mounted) = (dir.path().join("socket"), dir.path().join("mounted"));
        std::fs::create_dir(&mounted).expect("an empty directory");
        let file = mounted.join("disk");
        let mut server = Command::new("nbdkit");
        server.args(["--foreground", "--unix"]).arg(&socket);
        server.args(["--filter=error", "--filter=delay", "memory"]);
        server.arg(format!("size={bytes}"));
        server.arg(format!("wdelay={}ms", unsoundness.write_delay.as_millis()));
        server.arg("error-pwrite=EIO");
        server.arg(format!("error-pwrite-rate={}%", unsoundness.failing_percent));
        server.arg(format!("error-file={}", dir.path().join("broken").display()));
        let server = Daemon::start(&mut server, || socket.exists());
        let mut client = Command::new("nbdfuse");
        client.arg(&file).arg("--unix").arg(&socket);
        let fuse = FuseMount(mounted);
        let client = Daemon::start(&mut client, || file.exists());
        let device = LoopDevice::attach(&file, true);
        make_file_system(device.path());
        let mount = Mount::new(device.path());
        UnsoundDisk { mount, _device: device, _fuse: fuse, _client: client, _server: server, dir }
    }

    /// From now on writes fail.
    pub(crate) fn break_writes(&self) {
        std::fs::write(self.dir.path().join("broken"), "").expect("a file can be made");
    }

    /// From now on they do not.
    pub(crate) fn heal(&self) {
        std::fs::remove_file(self.dir.path().join("broken")).expect("it was broken");
    }
}
