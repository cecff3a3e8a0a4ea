//! A server in a process of its own: this test program once more, so that its memory and time are
//! nobody else's.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};

use thalweg_router::kinesis::server::{Limits, TlsIdentity};

use crate::support::Served;

/// Tells the program that it is such a server, and by which identity.
const IS_SERVER: &str = "THALWEG_TEST_SERVER";
const CHAIN: &str = "THALWEG_TEST_CHAIN";
const KEY: &str = "THALWEG_TEST_KEY";

/// A server process. It ends with this.
pub(crate) struct ServerProcess {
    process: Child,
    pub(crate) address: SocketAddr,
    /// Kept open: the process has some more to say at its end.
    _output: BufReader<ChildStdout>,
}

impl ServerProcess {
    /// With TLS if there are a chain and a key, in PEM.
    pub(crate) fn start(identity: Option<(&str, &str)>) -> ServerProcess {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.args(["--exact", "child::server_process", "--ignored", "--nocapture"]);
        command.env(IS_SERVER, "1").stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some((chain, key)) = identity {
            command.env(CHAIN, chain).env(KEY, key);
        }
        let mut process = command.spawn().expect("a process");
        let output = process.stdout.take().expect("a pipe");
        let mut output = BufReader::new(output);
        let address = output
            .by_ref()
            .lines()
            .map(|line| line.expect("text"))
            .find_map(|line| line.split_once("listening at ").map(|(_, rest)| rest.to_owned()))
            .expect("the server tells where it listens")
            .parse()
            .expect("an address");
        ServerProcess { process, address, _output: output }
    }

    /// Bytes that are in memory.
    pub(crate) fn resident_bytes(&self) -> usize {
        let pages = self.proc_fields("statm")[1].parse::<usize>().expect("a number");
        pages * rustix::param::page_size()
    }

    /// Seconds of processor time.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let fields = self.proc_fields("stat");
        // After the name, which is in parentheses: state is field 3, times are 14 and 15.
        let name_end = fields.iter().rposition(|field| field.ends_with(')')).expect("a name");
        let ticks = |place: usize| fields[name_end + place].parse::<f64>().expect("a number");
        (ticks(12) + ticks(13)) / rustix::param::clock_ticks_per_second() as f64
    }

    fn proc_fields(&self, file: &str) -> Vec<String> {
        let path = format!("/proc/{}/{file}", self.process.id());
        let text = std::fs::read_to_string(path).expect("the process lives");
        text.split_ascii_whitespace().map(str::to_owned).collect()
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Its input ends, and with it the server.
        drop(self.process.stdin.take());
        self.process.wait().expect("the process ends");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the server of other tests, which start it"]
async fn server_process() {
    if std::env::var_os(IS_SERVER).is_none() {
        return;
    }
    let tls = std::env::var(CHAIN).ok().map(|chain| {
        let key = std::env::var(KEY).expect("a key for the chain");
        TlsIdentity::from_pem(chain.as_bytes(), key.as_bytes()).expect("a pair")
    });
    let served = Served::start_with(|config| {
        config.limits = Limits::default();
        config.tls = tls;
    });
    println!("listening at {}", served.address());
    let input_ends = || std::io::stdin().read_to_end(&mut Vec::new());
    tokio::task::spawn_blocking(input_ends).await.expect("no panic").expect("a pipe");
}
