//! `thalweg dev`: storage node, metadata store and router in one process, for a laptop and for
//! tests of applications.

use std::fs::DirBuilder;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use clap::Args;
use prometheus_client::collector::Collector;
use thalweg_node::{Node, NodeConfig};
use thalweg_router::config::{check_account, check_region};
use thalweg_router::kinesis::credentials::create_credentials_file;
use thalweg_router::{Access, RouterConfig};
use tracing::{info, warn};

use crate::Failure;
use crate::node_metrics::NodeCollector;
use crate::router_command::serve_router;
use crate::signals::stop_on_signals;
use crate::size::Size;

/// Bytes of a segment: three of them are made at the first start, for each core.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Bytes of records that wait for the node, and of those that wait for clients.
const ROUTER_BYTES_MAX: usize = 64 << 20;
/// Bytes of records on their way to subscribers: some 250 subscriptions.
const SUBSCRIBE_BYTES_MAX: usize = 256 << 20;

/// Arguments of `thalweg dev`.
#[derive(Args, Debug)]
pub(crate) struct DevArgs {
    /// Address and port to serve the API on; with port 0 the system chooses one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:4567")]
    listen: SocketAddr,

    /// Directory to keep everything in; made when it is missing. It has the node's data in `node`,
    /// the metadata store in `store`, access keys in `credentials.toml`
    #[arg(long, value_name = "DIR", default_value = "thalweg-data")]
    data_dir: PathBuf,

    /// Let everybody in, without access keys. Only where nobody but this machine can connect
    #[arg(long)]
    no_auth: bool,

    /// Account of the access key that is made at the first start, and of whoever comes without
    #[arg(long, value_name = "DIGITS", default_value = "123456789012")]
    account_id: String,

    /// Region of the lines that are printed, and of requests that are not signed. Streams belong to
    /// the region that a request is signed for, whichever it is
    #[arg(long, value_name = "NAME", default_value = "us-east-1")]
    region: String,

    /// Cores of the storage node, each a pinned thread: 1 to 1024, or 0 for one a processor
    #[arg(long, value_name = "COUNT", default_value = "1")]
    cores: usize,

    /// Memory budget of the storage node, in bytes or with a unit: 64MiB a core at least. Three
    /// quarters of it are locked
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    memory_bytes: Size,

    /// No limits of shards, of calls and of counts, but for a million shards a stream: for raw
    /// benchmarks
    #[arg(long)]
    unlimited: bool,
}

impl DevArgs {
    /// Serves until a signal comes.
    ///
    /// # Errors
    /// Why it did not start, or had to end.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let config = self.router_config();
        config.check().map_err(thalweg_router::RouterError::from)?;
        check_account(&self.account_id).map_err(thalweg_router::RouterError::from)?;
        check_region(&self.region).map_err(thalweg_router::RouterError::from)?;
        // Others on this machine have no business with keys and records.
        let mut directory = DirBuilder::new();
        directory
            .recursive(true)
            .mode(0o700)
            .create(&self.data_dir)
            .map_err(|source| Failure::DataDir { path: self.data_dir.clone(), source })?;
        let stop = stop_on_signals().map_err(Failure::Signals)?;
        let node = Node::start(self.node_config())?;
        // The node's directory is locked now: nobody else makes keys here.
        if let Access::Keys { credentials } = &config.access
            && !credentials.exists()
        {
            let key = create_credentials_file(credentials, &self.account_id)
                .map_err(thalweg_router::RouterError::from)?;
            info!("access key {} made in {}", key.access_key_id(), credentials.display());
        }
        if self.unlimited {
            warn!("no limits are enforced: clients will see more here than in production");
        }
        let address = node.addresses()[0];
        let more: Vec<Box<dyn Collector>> = vec![Box::new(NodeCollector(node.metrics()))];
        let served = serve_router(config, address, stop, more, |router| {
            self.print_welcome(router.address());
        });
        node.stop();
        if served.is_ok() {
            info!("stopped");
        }
        served
    }

    fn router_config(&self) -> RouterConfig {
        let access = if self.no_auth {
            Access::Open { account_id: self.account_id.clone(), region: self.region.clone() }
        } else {
            Access::Keys { credentials: self.data_dir.join("credentials.toml") }
        };
        RouterConfig {
            limits: !self.unlimited,
            write_bytes_max: ROUTER_BYTES_MAX,
            read_bytes_max: ROUTER_BYTES_MAX,
            subscribe_bytes_max: SUBSCRIBE_BYTES_MAX,
            ..RouterConfig::new(self.listen, self.data_dir.join("store"), access)
        }
    }

    fn node_config(&self) -> NodeConfig {
        NodeConfig {
            data_dirs: vec![self.data_dir.join("node")],
            // For the router in this process alone.
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            cores: self.cores,
            memory_bytes: self.memory_bytes.0,
            segment_bytes: SEGMENT_BYTES,
            prefill_bytes: 0,
            ..NodeConfig::default()
        }
    }

    fn print_welcome(&self, address: SocketAddr) {
        let credentials = (!self.no_auth).then(|| self.data_dir.join("credentials.toml"));
        let text = welcome(address, &self.region, credentials.as_deref());
        // Whoever closed stdout does not want to know.
        let _ = std::io::stdout().write_all(text.as_bytes());
        let _ = std::io::stdout().flush();
    }
}

/// What to type to try it. The secret is read from its file by the shell that needs it: what is
/// printed here may end in a log.
fn welcome(address: SocketAddr, region: &str, credentials: Option<&Path>) -> String {
    let of_file = |key: &str, file: &str| {
        format!("\"$(sed -n 's/^{key} = \"\\(.*\\)\"$/\\1/p' {file} | head -n 1)\"")
    };
    let (id, secret) = match credentials {
        Some(path) => {
            let file = quoted(&path.display().to_string());
            (of_file("access_key_id", &file), of_file("secret_access_key", &file))
        }
        // Clients sign whether they are asked to or not.
        None => ("none".to_owned(), "none".to_owned()),
    };
    // Where it listens everywhere, it is reached here.
    let host = match address {
        SocketAddr::V4(address) if address.ip().is_unspecified() => "127.0.0.1".to_owned(),
        SocketAddr::V6(address) if address.ip().is_unspecified() => "[::1]".to_owned(),
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    };
    format!(
        "Thalweg serves the Amazon Kinesis Data Streams API on http://{host}:{port}

Try it from another shell in this directory:

export AWS_ENDPOINT_URL_KINESIS=http://{host}:{port}
export AWS_REGION={region} AWS_DEFAULT_REGION={region}
export AWS_ACCESS_KEY_ID={id}
export AWS_SECRET_ACCESS_KEY={secret}
aws kinesis create-stream --stream-name rivers --shard-count 2
aws kinesis wait stream-exists --stream-name rivers
aws kinesis put-record --stream-name rivers --partition-key rhine --data aGVsbG8=
aws kinesis describe-stream-summary --stream-name rivers

",
        port = address.port()
    )
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_lines_to_try_take_the_keys_from_their_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("it's credentials.toml");
        let key = create_credentials_file(&path, "123456789012").unwrap();
        let address = "127.0.0.1:4567".parse().unwrap();
        let text = welcome(address, "eu-west-1", Some(&path));
        assert!(!text.contains(key.secret_access_key()) && text.contains("aws kinesis"), "{text}");
        let exports: String = text
            .lines()
            .filter(|line| line.starts_with("export "))
            .flat_map(|line| [line, "\n"])
            .collect();
        let script = format!(
            "{exports}printf '%s' \"$AWS_ACCESS_KEY_ID $AWS_SECRET_ACCESS_KEY $AWS_REGION \
             $AWS_ENDPOINT_URL_KINESIS\""
        );
        let output = Command::new("sh").args(["-ec", &script]).output().unwrap();
        let expected = format!(
            "{} {} eu-west-1 http://127.0.0.1:4567",
            key.access_key_id(),
            key.secret_access_key()
        );
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }

    #[test]
    fn an_address_of_everywhere_is_reached_here() {
        for (address, host) in [
            ("0.0.0.0:1", "http://127.0.0.1:1\n"),
            ("[::]:2", "http://[::1]:2\n"),
            ("[fe80::1]:3", "http://[fe80::1]:3\n"),
        ] {
            assert!(welcome(address.parse().unwrap(), "r", None).contains(host), "{address}");
        }
    }
}
