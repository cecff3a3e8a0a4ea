//! TLS: both versions of HTTP by negotiation, and what is no handshake.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use thalweg_router::kinesis::server::{Limits, TlsIdentity};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::http2::{call, handshake, text};
use crate::support::{Client, Served, short_limits};

/// A certificate that signs itself, and its key.
pub(crate) struct Made {
    pub(crate) chain: String,
    pub(crate) key: String,
    pub(crate) certificate: CertificateDer<'static>,
}

impl Made {
    pub(crate) fn new() -> Made {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
        let made = made.expect("a certificate");
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        Made { chain, key, certificate: made.cert.der().clone() }
    }
}

fn start(limits: Limits) -> (Served, CertificateDer<'static>) {
    let made = Made::new();
    let identity = TlsIdentity::from_pem(made.chain.as_bytes(), made.key.as_bytes());
    let served = Served::start_with(|config| {
        config.tls = Some(identity.expect("a pair"));
        config.limits = limits;
    });
    (served, made.certificate)
}

pub(crate) async fn connect(
    address: SocketAddr,
    certificate: &CertificateDer<'static>,
    protocols: &[&[u8]],
) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let stream = TcpStream::connect(address).await.expect("the server listens");
    let name = ServerName::try_from("localhost").expect("a name");
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.expect("a handshake")
}

#[tokio::test]
async fn http_1_1_is_spoken_to_who_asks_for_it_or_for_nothing() {
    let (served, certificate) = start(Limits::default());
    for protocols in [&[][..], &[&b"http/1.1"[..]]] {
        let mut client = Client::new(connect(served.address(), &certificate, protocols).await);
        let answer = client.call("Who", "").await;
        assert!(answer.text().starts_with("HTTP/1.1 Json host=localhost"), "{}", answer.text());
        assert!(answer.text().contains(" tls=true "), "{}", answer.text());
        let body = vec![7; 3 << 20];
        assert_eq!(client.call("Echo", &body).await.body, body);
    }
}

#[tokio::test]
async fn http_2_is_preferred() {
    let (served, certificate) = start(Limits::default());
    let stream = connect(served.address(), &certificate, &[b"http/1.1", b"h2"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut client = handshake(stream).await;
    let (_, who) = text(&mut client, call("Who", &[], "")).await;
    assert!(who.starts_with("HTTP/2.0 ") && who.contains(" tls=true "), "{who}");
}

#[tokio::test]
async fn an_idle_connection_is_not_taken_for_a_slow_head() {
    let (served, certificate) = start(short_limits());
    let mut client = Client::new(connect(served.address(), &certificate, &[]).await);
    // Longer than a head may take: what came so far was a handshake.
    tokio::time::sleep(short_limits().head_time + std::time::Duration::from_millis(200)).await;
    assert_eq!(client.call("Echo", "there").await.text(), "there");
    assert!(client.is_closed().await);
    assert_eq!(served.server.counts().clients_cut, 0);
}

#[tokio::test]
async fn what_is_no_handshake_ends_the_connection() {
    let (served, _) = start(short_limits());
    let mut plain = served.connect().await;
    plain.send("POST / HTTP/1.1\r\n\r\n").await;
    // An alert of TLS, and the end.
    let mut rest = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut plain.stream, &mut rest);
    tokio::time::timeout(crate::support::PATIENCE, read).await.expect("the end").ok();
    assert!(rest.len() <= 7 && !rest.starts_with(b"HTTP"), "{rest:?}");
    assert_eq!(served.server.counts().clients_cut, 0);

    // A record that announces more than comes.
    let mut slow = served.connect().await;
    slow.send([22, 3, 1, 1, 0, 1]).await;
    assert!(slow.is_closed().await);
    let mut silent = served.connect().await;
    assert!(silent.is_closed().await);
    served.until("the end of all", |counts| counts.connections_open == 0).await;
    assert_eq!(served.server.counts().clients_cut, 2);
}
