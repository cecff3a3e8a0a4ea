//! `thalweg dev` as a process of its own.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{PATIENCE, thalweg};

/// A running `thalweg dev`; it is killed with its handle.
pub(crate) struct DevProcess {
    child: Child,
    pub address: SocketAddr,
    arguments: Vec<String>,
}

impl DevProcess {
    /// Starts it on a port and waits until it serves.
    pub(crate) fn start(data_dir: &Path, port: u16, more: &[&str]) -> DevProcess {
        DevProcess::start_logging(data_dir, port, more, "warn", Stdio::inherit())
    }

    /// The same, with this much of a log to go there.
    pub(crate) fn start_logging(
        data_dir: &Path,
        port: u16,
        more: &[&str],
        level: &str,
        log: Stdio,
    ) -> DevProcess {
        let listen = format!("127.0.0.1:{port}");
        let data_dir = data_dir.to_str().expect("a path of the test");
        let arguments = ["--log", level, "dev", "--listen", &listen, "--data-dir", data_dir];
        let arguments = arguments.iter().chain(more).map(|argument| (*argument).to_owned());
        DevProcess::run(arguments.collect(), listen.parse().expect("an address"), log)
    }

    fn run(arguments: Vec<String>, address: SocketAddr, log: Stdio) -> DevProcess {
        let mut command = thalweg(&[]);
        command.args(&arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().expect("the program can be started");
        let mut dev = DevProcess { child, address, arguments };
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Some(status) = dev.child.try_wait().expect("a child can be asked") {
                panic!("it ended: {status}");
            }
            assert!(started.elapsed() < PATIENCE, "it does not serve");
            std::thread::sleep(Duration::from_millis(5));
        }
        dev
    }

    /// Kills it at once, as a crash would, and starts it anew.
    pub(crate) fn kill_and_restart(&mut self) {
        self.child.kill().expect("a running child can be killed");
        self.child.wait().expect("a killed child ends");
        *self = DevProcess::run(self.arguments.clone(), self.address, Stdio::inherit());
    }

    /// Asks it to stop; answers its exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        let id = self.child.id().to_string();
        let asked = Command::new("kill").args(["-TERM", &id]).status();
        assert!(asked.expect("kill can be run").success());
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for DevProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
