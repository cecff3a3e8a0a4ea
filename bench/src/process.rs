//! A node in a process of its own: what it uses is then its own, and a start is what a user has.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use thalweg_client::Admin;
use thalweg_wire::ids::StreamId;

use crate::embedded::Target;
use crate::error::BenchError;
use crate::settings::Common;

/// How long a node may take to serve, or to stop.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is asked whether it does.
const ASK: Duration = Duration::from_millis(2);
const PORT_TRIES: usize = 100;

/// A node that goes when this does. Its directory stays.
pub struct NodeProcess {
    child: Child,
    addresses: Vec<SocketAddr>,
}

/// What a process has used so far.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Usage {
    /// Memory resident now, bytes.
    pub resident_bytes: u64,
    /// Most memory resident, bytes.
    pub resident_bytes_max: u64,
    /// Seconds of processor time, in the kernel and out of it.
    pub processor_s: f64,
}

impl NodeProcess {
    /// Starts a node on a directory, as the program that this is; returns when every core serves.
    /// Answers how long that took.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn start(
        settings: &Common,
        dir: &Path,
        prefill_bytes: u64,
    ) -> Result<(NodeProcess, Duration), BenchError> {
        let failed = |what| move |source| BenchError::Process { what, source };
        let program = std::env::current_exe().map_err(failed("this program cannot be found"))?;
        let cores = settings.logs();
        let port = free_ports(cores).map_err(failed("no free ports side by side"))?;
        let mut command = Command::new(program);
        command.args(["--log", "warn", "node", "--data-dir"]).arg(dir);
        command.args(["--listen", &format!("127.0.0.1:{port}")]);
        command.args(["--cores", &cores.to_string()]);
        command.args(["--memory-bytes", &settings.memory_bytes.to_string()]);
        command.args(["--prefill-bytes", &prefill_bytes.to_string()]);
        // The run's settings are all there is.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("THALWEG_") {
                command.env_remove(name);
            }
        }
        let started = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.map_err(failed("the node cannot be started"))?;
        let addresses: Vec<SocketAddr> =
            (0..cores as u16).map(|core| SocketAddr::from(([127, 0, 0, 1], port + core))).collect();
        let mut node = NodeProcess { child, addresses };
        node.wait_until_it_serves(started)?;
        Ok((node, started.elapsed()))
    }

    /// Each core answers only when it has recovered.
    fn wait_until_it_serves(&mut self, started: Instant) -> Result<(), BenchError> {
        for core in 0..self.addresses.len() {
            loop {
                let admin = Admin::connect(self.addresses[core], PATIENCE);
                let Err(error) = admin.and_then(|mut admin| admin.hello()) else { break };
                if let Ok(Some(status)) = self.child.try_wait() {
                    let source = std::io::Error::other(status.to_string());
                    return Err(BenchError::Process { what: "the node ended", source });
                }
                if started.elapsed() > PATIENCE {
                    return Err(error.into());
                }
                std::thread::sleep(ASK);
            }
        }
        Ok(())
    }

    /// The node as a target for workloads.
    #[must_use]
    pub fn target(&self) -> Target {
        Target { addresses: self.addresses.clone(), stream: StreamId(1) }
    }

    /// What the node has used.
    ///
    /// # Errors
    /// [`BenchError::Process`] when the system does not tell.
    pub fn usage(&self) -> Result<Usage, BenchError> {
        let read = |file| {
            std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id()))
                .map_err(|source| BenchError::Process { what: "the node is gone", source })
        };
        let usage = usage_of(&read("status")?, &read("stat")?);
        usage.ok_or_else(|| {
            let source = std::io::ErrorKind::InvalidData.into();
            BenchError::Process { what: "what the node uses cannot be read", source }
        })
    }

    /// Stops the node in order.
    ///
    /// # Errors
    /// [`BenchError::Process`] when it does not stop, or not well.
    pub fn stop(mut self) -> Result<(), BenchError> {
        let failed = |what| move |source| BenchError::Process { what, source };
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).map_err(|errno| failed("no signal")(errno.into()))?;
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE {
            match self.child.try_wait().map_err(failed("the node cannot be waited for"))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    let source = std::io::Error::other(status.to_string());
                    return Err(failed("the node did not end well")(source));
                }
                None => std::thread::sleep(ASK),
            }
        }
        Err(failed("the node does not stop")(std::io::ErrorKind::TimedOut.into()))
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // One that was stopped is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first of so many ports, one after the other, that nobody has now.
fn free_ports(count: usize) -> std::io::Result<u16> {
    for _ in 0..PORT_TRIES {
        let first = TcpListener::bind(("127.0.0.1", 0))?;
        let port = first.local_addr()?.port();
        let last = usize::from(port) + count - 1;
        if last <= usize::from(u16::MAX)
            && (port + 1..=last as u16).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        {
            return Ok(port);
        }
    }
    Err(std::io::ErrorKind::AddrInUse.into())
}

/// Takes apart what the system says of a process.
fn usage_of(status: &str, stat: &str) -> Option<Usage> {
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().split(' ').next()?.parse::<u64>().ok()? * 1024)
    };
    // Behind the name, which may have anything in it: state is the 3rd field of the line, the
    // ticks in and out of the kernel are the 14th and 15th.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    let ticks = fields.next()?.ok()? + fields.next()?.ok()?;
    Some(Usage {
        resident_bytes: bytes("VmRSS:")?,
        resident_bytes_max: bytes("VmHWM:")?,
        processor_s: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_taken_apart() {
        let status = "Name:\tnode\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 9 0 0 0 150 50 0 0 20 0 5 0 99 1 2 3";
        let ticks_per_s = rustix::param::clock_ticks_per_second() as f64;
        let expected = Usage {
            resident_bytes: 1 << 20,
            resident_bytes_max: 2 << 20,
            processor_s: 200.0 / ticks_per_s,
        };
        assert_eq!(usage_of(status, stat), Some(expected));
        assert_eq!(usage_of("", stat), None);
        assert_eq!(usage_of(status, "7 (node) S 1"), None);
    }

    #[test]
    fn this_process_uses_something() {
        let read = |file| std::fs::read_to_string(format!("/proc/self/{file}")).unwrap();
        let usage = usage_of(&read("status"), &read("stat")).unwrap();
        assert!(usage.resident_bytes > 0 && usage.resident_bytes_max >= usage.resident_bytes);
    }

    #[test]
    fn ports_side_by_side_are_free() {
        let port = free_ports(3).unwrap();
        assert!((port..port + 3).all(|port| port > 0));
    }
}
